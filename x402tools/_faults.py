"""What goes wrong in a test: single faults, and plans of several, one after the other.

Descriptions only, for an emulator that may run in another process; :mod:`x402tools.emulator.faults` carries them out,
and is imported by neither side here, so that a test can be written without the emulator's extra.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Optional, Tuple, Union


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, for a share of the requests. Make it with one of the constructors.

    Every constructor also takes, by name: ``share`` (the part of the matching requests that meet it, default 1.0),
    ``times`` (at most so often, default None for ever), ``lasts`` (only for so many seconds after it first happened,
    default None for ever), ``method`` and ``path`` (only those requests; ``*`` in a path stands for anything; default
    None for all) and ``seed`` (makes the draws repeatable). Of several faults, the first that fits a request and is
    drawn happens; for faults one after the other see :class:`FaultPlan`. Values out of range are refused when the
    fault is set.
    """

    kind: str
    share: float = 1.0
    times: Optional[int] = None
    method: Optional[str] = None
    path: Optional[str] = None
    error_status: int = 500
    retry_after: Union[int, float, str, None] = None
    seconds: float = 0.1
    seed: Optional[int] = None
    lasts: Optional[float] = None
    stage: int = 0
    """Its place in a :class:`FaultPlan`: it can happen once all faults of lower stages are over."""

    @classmethod
    def status(cls, status: int, *, retry_after: Union[int, float, str, None] = None, **scope: Any) -> Fault:
        """An answer with this status, 400 to 599, and a JSON error. Nothing is booked.

        ``retry_after`` is in seconds, or ``"date:N"`` for an HTTP date N seconds ahead.
        """
        return cls("status", retry_after=retry_after, **{**scope, "error_status": status})

    @classmethod
    def rate_limited(cls, retry_after: Union[int, float, str, None] = None, **scope: Any) -> Fault:
        """429, with ``Retry-After`` when given. Nothing is booked."""
        return cls.status(429, retry_after=retry_after, **scope)

    @classmethod
    def unavailable(cls, retry_after: Union[int, float, str, None] = None, **scope: Any) -> Fault:
        """503, with ``Retry-After`` when given. Nothing is booked."""
        return cls.status(503, retry_after=retry_after, **scope)

    @classmethod
    def latency(cls, seconds: float, **scope: Any) -> Fault:
        """Handled as usual, but only after these seconds, and also when the client has left by then."""
        return cls("latency", **{**scope, "seconds": seconds})

    @classmethod
    def reset_before_commit(cls, **scope: Any) -> Fault:
        """The connection is reset (RST). Nothing is booked."""
        return cls("reset_before", **scope)

    @classmethod
    def reset_after_commit(cls, **scope: Any) -> Fault:
        """The record is booked, and then the connection is reset (RST): the client cannot know."""
        return cls("reset_after", **scope)

    @classmethod
    def truncated(cls, **scope: Any) -> Fault:
        """The record is booked; its answer ends half-way through, short of its Content-Length."""
        return cls("truncated", **scope)

    @classmethod
    def html_error(cls, **scope: Any) -> Fault:
        """502 with an HTML page, as a proxy gives. Nothing is booked."""
        return cls("html", **scope)

    @classmethod
    def html_ok(cls, **scope: Any) -> Fault:
        """The record is booked; its answer is 200 with an HTML page."""
        return cls("html_ok", **scope)

    @classmethod
    def drip(cls, seconds: float, **scope: Any) -> Fault:
        """The record is booked; the body of its answer comes a byte at a time, over these seconds."""
        return cls("drip", **{**scope, "seconds": seconds})

    @classmethod
    def hang(cls, seconds: float = 60.0, **scope: Any) -> Fault:
        """The request is taken and never answered; the connection is closed after these seconds. Nothing is booked."""
        return cls("hang", **{**scope, "seconds": seconds})

    def to_json(self) -> Dict[str, Any]:
        """The fault as ``POST /__emulator__/faults`` takes it."""
        document = asdict(self)
        document["status"] = document.pop("error_status")
        return document

    def to_header(self) -> str:
        """The fault as the value of an ``X-Emulator-Fault`` header and of ``--fault``."""
        fields = {name: value for name, value in self.to_json().items() if name != "kind" and value is not None}
        return ";".join([self.kind, *(f"{name}={value}" for name, value in fields.items())])


@dataclass(frozen=True)
class FaultPlan:
    """Faults one after the other, for :meth:`x402tools.testing.Emulator.follow`. Immutable; each call returns more.

    >>> plan = (
    ...     FaultPlan()
    ...     .then(Fault.status(500), times=3)
    ...     .then(Fault.reset_after_commit())
    ...     .then(Fault.rate_limited(retry_after=1), seconds=2)
    ...     .then_healthy(times=10)
    ...     .then(Fault.latency(0.2), for_ever=True)
    ... )

    After its last step all is well again, unless that is for ever. The plan is about one kind of request, ``POST
    /usage`` by default; others pass by and do not count. A fault with a ``method`` or ``path`` of its own keeps it.

    Attributes:
        method: the requests that the plan is about; None for any.
        path: their path, in which ``*`` stands for anything; None for any path of the API.
        steps: the faults so far.
    """

    method: Optional[str] = "POST"
    path: Optional[str] = "/usage"
    steps: Tuple[Fault, ...] = ()

    def then(
        self, fault: Fault, *, times: Optional[int] = None, seconds: Optional[float] = None, for_ever: bool = False
    ) -> FaultPlan:
        """Return the plan with one more step: this fault, and nothing else until the step is over.

        Args:
            fault: what happens. With a ``share`` below 1, requests that do not meet it are handled as usual, and do
                not count.
            times: over when it happened so often. Default: once, unless one of the next two is given.
            seconds: over so many seconds after it happened first, so the time begins with a request.
            for_ever: never over; nothing can follow.

        Raises:
            ValueError: more than one end was given, or the step before it never ends.
        """
        if (times is not None) + (seconds is not None) + for_ever > 1:
            raise ValueError("a step ends after so many times, or seconds, or never: give one of them")
        if self.steps and self.steps[-1].times is None and self.steps[-1].lasts is None:
            raise ValueError("the step before this one never ends")
        is_once = times is None and seconds is None and not for_ever
        step = replace(
            fault,
            times=1 if is_once else times,
            lasts=seconds,
            stage=len(self.steps),
            method=fault.method or self.method,
            path=fault.path or self.path,
        )
        return replace(self, steps=(*self.steps, step))

    def then_healthy(self, *, times: Optional[int] = None, seconds: Optional[float] = None) -> FaultPlan:
        """Return the plan with a step in which requests are handled as usual; see :meth:`then`."""
        return self.then(Fault.latency(0), times=times, seconds=seconds)

    def repeated(self, rounds: int) -> FaultPlan:
        """Return the plan with all its steps so many times over.

        Raises:
            ValueError: fewer than one round, or the last step never ends.
        """
        if rounds < 1:
            raise ValueError(f"a plan goes round at least once, not {rounds} times")
        plan = self
        for step in self.steps * (rounds - 1):
            plan = plan.then(step, times=step.times, seconds=step.lasts)
        return plan
