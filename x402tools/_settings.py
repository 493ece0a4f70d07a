"""What a `UsageBuffer` was asked to be, checked once; every process that builds parts for it reads it here."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Tuple

from x402tools.errors import ValidationError
from x402tools.models import Usage

DURABILITIES = ("interval", "commit", "fsync")
EVENT_TIMES = ("omit", "metadata", "body")
QUEUE_FULL_POLICIES = ("reject", "block", "raise")
LONGEST = 86400.0  # seconds


class UserCallbacks(NamedTuple):
    """The callbacks a `UsageBuffer` was given."""

    on_delivery: Optional[Callable[[Usage], object]] = None
    on_dead_letter: Optional[Callable[[Usage, str], object]] = None
    on_error: Optional[Callable[[str], object]] = None
    on_drop: Optional[Callable[[Usage], object]] = None


class Settings(NamedTuple):
    """The arguments of `UsageBuffer`, which explains them; made by `checked`."""

    path: str
    makes_folder: bool
    durability: str
    flush_at: int
    flush_interval: float
    max_concurrency: int
    max_queue_size: int
    max_disk_bytes: int
    on_queue_full: str
    max_attempts: int
    exit_timeout: float
    delivers: bool
    user: UserCallbacks
    event_time: str = "omit"

    def checked(self) -> Settings:
        """These settings.

        Raises:
            ValidationError: one of them is not usable; it is named.
        """
        _check_choice("durability", self.durability, DURABILITIES)
        _check_choice("on_queue_full", self.on_queue_full, QUEUE_FULL_POLICIES)
        _check_choice("event_time", self.event_time, EVENT_TIMES)
        _check_number("flush_at", self.flush_at, 1, 10**9)
        _check_number("max_concurrency", self.max_concurrency, 1, 1000)
        _check_number("max_queue_size", self.max_queue_size, 1, 10**9)
        _check_number("max_disk_bytes", self.max_disk_bytes, 1024**2, 2**62)
        _check_number("max_attempts", self.max_attempts, 1, 10**9)
        check_seconds("flush_interval", self.flush_interval)
        check_seconds("exit_timeout", self.exit_timeout)
        for name, callback in zip(UserCallbacks._fields, self.user):
            if callback is not None and not callable(callback):
                raise ValidationError(f"{name} must be something to call, not {type(callback).__name__}")
        return self


def check_seconds(argument: str, value: object) -> float:
    """The value as a number of seconds from 0 to a day."""
    if type(value) not in (int, float) or not 0 <= value <= LONGEST:  # type: ignore[operator]  # a number by now
        raise ValidationError(f"{argument} must be seconds from 0 to {LONGEST:.0f}")
    return float(value)  # type: ignore[arg-type]  # a number by now


def _check_choice(argument: str, value: object, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise ValidationError(f"{argument} must be one of {', '.join(choices)}")


def _check_number(argument: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValidationError(f"{argument} must be a whole number from {least} to {most}")
