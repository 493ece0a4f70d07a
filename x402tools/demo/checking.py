"""What happened against what was billed, request by request. Pure: it is handed both and says how they differ.

A sum may agree by accident, one request lost and another billed twice; so each booked record carries the id of its
request, and the two are matched one by one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence

from x402tools.demo.log_file import Entry
from x402tools.demo.words import counted
from x402tools.testing import BookedEvent, Tally

# What durability="interval" may lose with a process that is killed: it commits within about 10 ms, here doubled,
# because the moment of the kill is noted by another process of a busy machine.
INTERVAL_LOSS = 0.020  # seconds


class Request(NamedTuple):
    """A request as the access log has it; `done_at` is None when it was cut off before `record_usage` returned."""

    id: str
    envelope_id: str
    amount: int
    pid: int
    done_at: Optional[float]


class Kill(NamedTuple):
    """A process of the service that was killed, and when (seconds since 1970)."""

    pid: int
    at: float


class Row(NamedTuple):
    """One envelope: what happened and what was billed, both without the requests that were cut off."""

    name: str
    happened: Tally
    billed: Tally

    @property
    def difference(self) -> Tally:
        """Billed beyond what happened; negative for what is missing."""
        return Tally(self.billed.events - self.happened.events, self.billed.units - self.happened.units)


@dataclass(frozen=True)
class Outcome:
    """How the bill and the access log compare.

    Attributes:
        rows: by envelope.
        cut_off, cut_off_billed: requests of killed processes that had begun and not recorded, and how many of them
            are on the bill; either is right.
        missing: finished requests that are not on the bill.
        excusable: how many requests the chosen durability allows to be missing.
        excused: how many of the missing are among those.
        faults: what must never be, in words; empty when the bill is right.
    """

    rows: List[Row]
    cut_off: int
    cut_off_billed: int
    missing: int
    excusable: int
    excused: int
    faults: List[str]

    @property
    def agrees(self) -> bool:
        return not self.faults


def requests_in(access_log: Iterable[Entry]) -> Dict[str, Request]:
    """The requests by id.

    Raises:
        ValueError: the log has a line that does not fit to the others.
    """
    requests: Dict[str, Request] = {}
    for at, pid, words in access_log:
        if words[0] == "begin" and len(words) == 4 and words[1] not in requests:
            requests[words[1]] = Request(words[1], words[2], int(words[3]), pid, None)
        elif words[0] == "done" and len(words) == 2 and words[1] in requests:
            requests[words[1]] = requests[words[1]]._replace(done_at=at)
        else:
            raise ValueError(f"the access log has a line out of place: {' '.join(words)[:60]}")
    return requests


def compare(
    requests: Dict[str, Request],
    booked: Sequence[BookedEvent],
    names: Dict[str, str],
    *,
    kills: Sequence[Kill] = (),
    loss_window: float = 0.0,
) -> Outcome:
    """Matches requests and booked records.

    Args:
        requests: what happened, by request id.
        booked: what was billed.
        names: of the envelopes, by their ids.
        kills: which processes were killed.
        loss_window: seconds before a kill in which what was recorded may be lost with the process.
    """
    times_billed = Counter(_request_id(event) for event in booked)
    finished = [request for request in requests.values() if request.done_at is not None]
    cut_off = [request for request in requests.values() if request.done_at is None]
    missing = {request.id for request in finished if not times_billed[request.id]}
    excusable = {request.id for request in finished if _may_be_lost(request, kills, loss_window)}
    killed = {kill.pid for kill in kills}
    faults = [
        counted(len(missing - excusable), "request was recorded and never billed", "requests were"),
        counted(sum(n > 1 for n in times_billed.values()), "request was billed more than once", "requests were"),
        counted(len(set(times_billed) - set(requests)), "request was billed that never happened", "requests were"),
        counted(_changed(requests, booked), "record has another envelope or amount", "records have"),
        counted(sum(r.pid not in killed for r in cut_off), "request never ended, in no killed worker", "requests"),
    ]
    return Outcome(
        rows=_rows(requests, finished, booked, names),
        cut_off=len(cut_off),
        cut_off_billed=sum(times_billed[request.id] > 0 for request in cut_off),
        missing=len(missing),
        excusable=len(excusable),
        excused=len(missing & excusable),
        faults=[fault for fault in faults if fault],
    )


def total(rows: Iterable[Row], name: str = "all") -> Row:
    """The sum of the rows."""
    happened, billed = Tally(0, 0), Tally(0, 0)
    for row in rows:
        happened, billed = _plus(happened, row.happened), _plus(billed, row.billed)
    return Row(name, happened, billed)


def _rows(
    requests: Dict[str, Request], finished: List[Request], booked: Sequence[BookedEvent], names: Dict[str, str]
) -> List[Row]:
    happened: Dict[str, Tally] = dict.fromkeys(names, Tally(0, 0))
    billed = happened.copy()
    for request in finished:
        happened[request.envelope_id] = _plus(happened[request.envelope_id], Tally(1, request.amount))
    for event in booked:
        request_or_none = requests.get(_request_id(event))
        if request_or_none is None or request_or_none.done_at is not None:
            billed[event.envelope_id] = _plus(billed[event.envelope_id], Tally(1, event.amount))
    return [Row(name, happened[envelope_id], billed[envelope_id]) for envelope_id, name in names.items()]


def _may_be_lost(request: Request, kills: Sequence[Kill], loss_window: float) -> bool:
    if not loss_window or request.done_at is None:
        return False
    return any(request.pid == kill.pid and request.done_at > kill.at - loss_window for kill in kills)


def _changed(requests: Dict[str, Request], booked: Sequence[BookedEvent]) -> int:
    count = 0
    for event in booked:
        request = requests.get(_request_id(event))
        if request is not None and (request.envelope_id, request.amount) != (event.envelope_id, event.amount):
            count += 1
    return count


def _request_id(event: BookedEvent) -> str:
    return str((event.metadata or {}).get("request_id"))


def _plus(one: Tally, other: Tally) -> Tally:
    return Tally(one.events + other.events, one.units + other.units)
