"""The control surface, ``/__emulator__/``: for tests and for the page, without a key, and no part of the API."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, Mapping

from x402tools.emulator import documents
from x402tools.emulator.api import NO_CONTENT, Call, Reply
from x402tools.emulator.faults import BadFault, Fault, FaultScript
from x402tools.emulator.refusal import Refusal
from x402tools.emulator.state import Books, Envelope
from x402tools.emulator.traffic import Traffic

MOST_EVENTS = 10_000
DEFAULT_EVENTS = 1_000
SHOWN_ENVELOPES = 100  # of the overview, which is asked for every second


class Control:
    """What a test may ask and change. Each method takes a :class:`Call` and returns a :class:`Reply`."""

    def __init__(self, books: Books, script: FaultScript, traffic: Traffic) -> None:
        self._books = books
        self._script = script
        self._traffic = traffic
        self.requests = 0
        """Requests to the API since this process started, whatever became of them."""

    def health(self, call: Call) -> Reply:
        """GET health: 200 as soon as the emulator answers at all."""
        return _json({"status": "ok", "pid": os.getpid()})

    def ledger(self, call: Call) -> Reply:
        """GET ledger: what was BOOKED, in all and by envelope; the counters of repeats, conflicts and requests."""
        tallies = {name: tally._asdict() for name, tally in self._books.tallies().items()}
        return _json({**self._totals(), "envelopes": tallies})

    def overview(self, call: Call) -> Reply:
        """GET overview: what the page shows, in one answer: totals, the first envelopes, the last seconds, faults."""
        envelopes = self._books.envelopes()
        return _json(
            {
                "now": documents.timestamp(self._books.now()),
                "clock_offset": self._books.clock_offset,
                "last_sequence": self._books.last_sequence(),
                "totals": self._totals(),
                "envelope_count": len(envelopes),
                "envelopes": [self._used(envelope) for envelope in envelopes[:SHOWN_ENVELOPES]],
                "faults": self._script.to_json(),
                **self._traffic.to_json(),
            }
        )

    def _totals(self) -> Dict[str, int]:
        total = self._books.total()
        return {
            "events": total.events,
            "units": total.units,
            "repeats_dropped": self._books.counter("repeats_dropped"),
            "conflicts": self._books.counter("conflicts"),
            "requests": self.requests,
        }

    def _used(self, envelope: Envelope) -> Dict[str, Any]:
        _, used = self._books.used(envelope)
        return {
            "id": envelope.id,
            "name": envelope.name,
            "limit": envelope.limit,
            "used": used,
            "period": envelope.period,
            "resets_at": documents.timestamp(self._books.resets_at(envelope)),
        }

    def events(self, call: Call) -> Reply:
        """GET events?after=&limit=: booked records in order, from the one after that sequence number."""
        after = _number(call.query, "after", 0)
        limit = min(_number(call.query, "limit", DEFAULT_EVENTS), MOST_EVENTS)
        return _json([documents.event(row) for row in self._books.usage_after(after, limit)])

    def get_faults(self, call: Call) -> Reply:
        """GET faults: the rules in force, each with the number of times it happened."""
        return _json(self._script.to_json())

    def set_faults(self, call: Call) -> Reply:
        """POST faults: a list of rules that replaces all others."""
        rules = _document(call.body)
        if not isinstance(rules, list):
            raise Refusal(400, "the body must be a list of fault rules")
        try:
            self._script.replace([Fault.from_json(rule) for rule in rules])
        except BadFault as error:
            raise Refusal(400, str(error)) from error
        return _json(self._script.to_json())

    def clear_faults(self, call: Call) -> Reply:
        """DELETE faults: no rule is in force any more."""
        self._script.replace([])
        return Reply(NO_CONTENT, b"")

    def reset(self, call: Call) -> Reply:
        """POST reset: empties the books and the counters; the faults stay in force."""
        self._books.reset()
        self._traffic.reset()
        self.requests = 0
        return Reply(NO_CONTENT, b"")

    def get_clock(self, call: Call) -> Reply:
        """GET clock: the emulator's time."""
        return _json({"now": documents.timestamp(self._books.now()), "offset": self._books.clock_offset})

    def set_clock(self, call: Call) -> Reply:
        """POST clock: ``{"offset": seconds}`` puts the emulator's time that far ahead, to see periods end."""
        document = _document(call.body)
        offset: Any = document.get("offset") if isinstance(document, dict) else None
        if type(offset) not in (int, float) or not abs(offset) < MOST_SECONDS_AHEAD:
            raise Refusal(400, f"offset must be a number of seconds below {MOST_SECONDS_AHEAD}")
        self._books.clock_offset = float(offset)
        return self.get_clock(call)


MOST_SECONDS_AHEAD = 50 * 366 * 86_400  # Fifty years: beyond that some platforms cannot print the time.


def _json(document: Any) -> Reply:
    return Reply(200, documents.to_bytes(document))


def _document(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not valid JSON") from None


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < len(str(2**63))):
        raise Refusal(400, f"{name} must be a whole number")
    return int(text)
