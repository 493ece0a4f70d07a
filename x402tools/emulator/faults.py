"""Scripted faults: which one, if any, a request meets. Decides only; :mod:`x402tools.emulator.sabotage` carries out."""

from __future__ import annotations

import fnmatch
import random
import time
from dataclasses import asdict, dataclass, fields
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union

KINDS = {
    "status": "answers with `status` and a JSON error; nothing is booked",
    "latency": "waits `seconds`, then handles the request as usual, even when the client has left",
    "reset_before": "resets the connection; nothing is booked",
    "reset_after": "books, then resets the connection: the client cannot know",
    "truncated": "books, then cuts the answer short of its Content-Length and closes",
    "html": "answers 502 with an HTML page, as a proxy does; nothing is booked",
    "html_ok": "books, then answers 200 with an HTML page",
    "drip": "books, then sends the body a byte at a time over `seconds`",
    "hang": "never answers; closes after `seconds` at the latest; nothing is booked",
}
FIRST_ERROR, LAST_ERROR = 400, 599
DATE_PREFIX = "date:"
MOST_SECONDS = 10**9  # Thirty years: beyond that there are no dates to print.


class BadFault(ValueError):
    """A fault rule that cannot be carried out; the message names the field."""


@dataclass(frozen=True)
class Fault:
    """One rule. Checked when made: a Fault that exists can be carried out."""

    kind: str
    """One of :data:`KINDS`."""
    share: float = 1.0
    """The part of the matching requests that meet the fault, above 0 and up to 1."""
    times: Optional[int] = None
    """How often it happens at most; None for ever."""
    method: Optional[str] = None
    """Only requests with this method; None for any."""
    path: Optional[str] = None
    """Only requests to this path, in which ``*`` stands for anything; None for any path of the API."""
    status: int = 500
    """The status of kind ``status``, 400 to 599."""
    retry_after: Union[int, float, str, None] = None
    """``Retry-After`` of kind ``status``: seconds, or ``"date:N"`` for an HTTP date N seconds ahead."""
    seconds: float = 0.1
    """How long ``latency``, ``drip`` and ``hang`` take."""
    seed: Optional[int] = None
    """Makes the draws of ``share`` repeatable; None draws differently every time."""
    lasts: Optional[float] = None
    """For how many seconds after it first happened it goes on happening; None for ever."""
    stage: int = 0
    """Of several rules, those of the lowest stage that are not over (``times``, ``lasts``) are in force."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadFault(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if not _is_number(self.share) or not 0 < self.share <= 1:
            raise BadFault(f"share must be above 0 and at most 1, not {self.share!r}")
        if self.times is not None and (type(self.times) is not int or self.times < 0):
            raise BadFault(f"times must be a whole number or null, not {self.times!r}")
        if type(self.status) is not int or not FIRST_ERROR <= self.status <= LAST_ERROR:
            raise BadFault(f"status must be from {FIRST_ERROR} to {LAST_ERROR}, not {self.status!r}")
        if not _is_number(self.seconds) or not 0 <= self.seconds < MOST_SECONDS:
            raise BadFault(f"seconds must be a number and not negative, not {self.seconds!r}")
        if self.lasts is not None and not (_is_number(self.lasts) and 0 <= self.lasts < MOST_SECONDS):
            raise BadFault(f"lasts must be seconds or null, not {self.lasts!r}")
        if type(self.stage) is not int or self.stage < 0:
            raise BadFault(f"stage must be a whole number, not {self.stage!r}")
        for field in ("method", "path"):
            if not isinstance(getattr(self, field), (str, type(None))):
                raise BadFault(f"{field} must be text or null, not {getattr(self, field)!r}")
        if self.seed is not None and type(self.seed) is not int:
            raise BadFault(f"seed must be a whole number or null, not {self.seed!r}")
        _check_retry_after(self.retry_after)

    def fits(self, method: str, path: str) -> bool:
        """Whether the rule speaks of such a request."""
        is_method = self.method is None or self.method.upper() == method
        return is_method and (self.path is None or fnmatch.fnmatchcase(path, self.path))

    @classmethod
    def from_json(cls, document: Any) -> Fault:
        """Read a rule in its JSON form: an object with the fields of this class.

        Raises:
            BadFault: it is no object, has an unknown field, lacks ``kind``, or a value is out of range.
        """
        if not isinstance(document, dict) or "kind" not in document:
            raise BadFault('a fault rule is an object with a "kind"')
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(document) - known)
        if unknown:
            raise BadFault(f"a fault rule has no field {unknown[0]!r}; there are {', '.join(sorted(known))}")
        return cls(**document)

    @classmethod
    def from_text(cls, text: str) -> Fault:
        """Read a rule in its short form, ``kind;field=value;…``, such as ``status;status=503;retry_after=date:2``.

        Raises:
            BadFault: as :meth:`from_json`.
        """
        kind, *settings = [part.strip() for part in text.split(";") if part.strip()] or [""]
        document: Dict[str, Any] = {"kind": kind}
        for setting in settings:
            name, _, value = setting.partition("=")
            document[name.strip()] = _number_or_text(value.strip())
        return cls.from_json(document)


class FaultScript:
    """The rules in force. Not safe for threads: the emulator asks from its event loop only."""

    def __init__(self, rules: Sequence[Fault] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.replace(rules)

    def replace(self, rules: Sequence[Fault]) -> None:
        """Put these rules in force instead of all others; every count and every draw begins anew."""
        self._entries = [_Entry(rule) for rule in rules]

    def draw(self, method: str, path: str) -> Optional[Fault]:
        """Return the fault that this request meets: the first rule in force, in order, that fits and is drawn."""
        now = self._clock()
        left = [entry for entry in self._entries if not entry.is_over(now)]
        stage = min((entry.rule.stage for entry in left), default=0)
        for entry in left:
            if entry.rule.stage == stage and entry.is_drawn(method, path, now):
                return entry.rule
        return None

    def to_json(self) -> List[Mapping[str, Any]]:
        """The rules in their JSON form, each with ``fired``, the number of times it happened."""
        return [{**asdict(entry.rule), "fired": entry.fired} for entry in self._entries]


class _Entry:
    """A rule with its draws and its count."""

    def __init__(self, rule: Fault) -> None:
        self.rule = rule
        self.fired = 0
        self._first_fired_at: Optional[float] = None
        self._random = random.Random(rule.seed)

    def is_over(self, now: float) -> bool:
        if self.rule.times is not None and self.fired >= self.rule.times:
            return True
        lasts, first = self.rule.lasts, self._first_fired_at
        return lasts is not None and first is not None and now - first >= lasts

    def is_drawn(self, method: str, path: str, now: float) -> bool:
        if not self.rule.fits(method, path):
            return False
        if self._random.random() >= self.rule.share:
            return False
        self.fired += 1
        if self._first_fired_at is None:
            self._first_fired_at = now
        return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_retry_after(value: Any) -> None:
    is_date = isinstance(value, str) and value.startswith(DATE_PREFIX)
    seconds: Any = _number_or_text(value[len(DATE_PREFIX) :]) if is_date else value
    if seconds is not None and not (_is_number(seconds) and 0 <= seconds < MOST_SECONDS):
        raise BadFault(f'retry_after must be seconds or "{DATE_PREFIX}SECONDS", not {value!r}')


def _number_or_text(text: str) -> Union[int, float, str]:
    for reader in (int, float):
        try:
            return reader(text)
        except ValueError:
            continue
    return text
