"""The eleven calls of the API: what each one does with the books. No networking."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Optional, Union

from x402tools.emulator import documents
from x402tools.emulator.checks import Checks
from x402tools.emulator.refusal import Refusal
from x402tools.emulator.state import Answer, Books, Envelope

NO_CONTENT = 204


class Call(NamedTuple):
    """A request, read whole."""

    method: str
    path: str
    path_params: Mapping[str, str]
    query: Mapping[str, str]
    idempotency_key: Optional[str]
    body: bytes


class Reply(NamedTuple):
    """A status and a JSON body, or the pieces of one that is too large to be held."""

    status: int
    body: Union[bytes, Iterator[bytes]]


class Api:
    """The calls, over one set of books. Each method takes a :class:`Call` and returns a :class:`Reply`."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._choices = books.choices
        self._check = Checks(books.choices)

    # --- envelopes ---

    def get_envelopes(self, call: Call) -> Reply:
        """GET /envelopes: the bare list."""
        return _json([documents.envelope(envelope) for envelope in self._books.envelopes()])

    def get_envelope(self, call: Call) -> Reply:
        """GET /envelopes/{id}."""
        return _json(documents.envelope(self._envelope(call.path_params["id"])))

    def create_envelope(self, call: Call) -> Reply:
        """POST /envelopes."""
        document = self._check.document(call.body)
        name, limit = self._check.name(document), self._check.limit(document)
        period, reset_day = self._check.period(document), self._check.reset_day(document)

        def create(key: Optional[str]) -> bytes:
            return documents.to_bytes(documents.envelope(self._books.add_envelope(name, limit, period, reset_day)))

        return self._once(call, document, create)

    def update_envelope(self, call: Call) -> Reply:
        """PUT /envelopes/{id}: the fields that are absent stay as they are; ``resetDay: null`` clears it."""
        envelope = self._envelope(call.path_params["id"])
        document = self._check.document(call.body)
        readers: Dict[str, Any] = {
            "name": ("name", self._check.name),
            "limit": ("limit", self._check.limit),
            "period": ("period", self._check.period),
            "resetDay": ("reset_day", self._check.reset_day),
        }
        changes = {name: read(document) for field, (name, read) in readers.items() if field in document}
        with self._books.transaction():
            changed = self._books.change_envelope(envelope, changes)
        return _json(documents.envelope(changed))

    def delete_envelope(self, call: Call) -> Reply:
        """DELETE /envelopes/{id}: 204, empty."""
        with self._books.transaction():
            if not self._books.delete_envelope(call.path_params["id"]):
                raise _no_envelope()
        return Reply(NO_CONTENT, b"")

    # --- usage ---

    def record_usage(self, call: Call) -> Reply:
        """POST /usage."""
        document = self._check.document(call.body)
        envelope_id, amount = self._check.envelope_id(document), self._check.amount(document)
        metadata = self._check.metadata(document)

        def book(key: Optional[str]) -> bytes:
            return documents.usage(self._books.add_usage(self._envelope(envelope_id), amount, metadata, key))

        return self._once(call, document, book)

    def get_usage(self, call: Call) -> Reply:
        """GET /usage, ?envelopeId= for one envelope: the bare list, made while it is sent."""
        envelope_id = call.query.get("envelopeId")
        return Reply(200, _list_in_pieces(self._books, envelope_id))

    def get_usage_stats(self, call: Call) -> Reply:
        """GET /usage/stats."""
        envelopes = self._books.envelopes()
        periods = [self._period_usage(envelope) for envelope in envelopes]
        used = sum(1 for period in periods if period["used"])
        return _json(
            {
                "totalUsage": self._books.listed_total().units,
                "envelopeCount": len(envelopes),
                "activeEnvelopes": used if self._choices.active_means_used else len(envelopes),
                "periodUsage": periods,
            }
        )

    def _period_usage(self, envelope: Envelope) -> Dict[str, Any]:
        start, used = self._books.used(envelope)
        return {
            "envelopeId": envelope.id,
            "name": envelope.name,
            "used": used,
            "limit": envelope.limit,
            "period": envelope.period,
            "periodStart": documents.timestamp(start),
        }

    # --- keys ---

    def get_api_keys(self, call: Call) -> Reply:
        """GET /api-keys: the bare list, with the keys in full."""
        return _json([documents.api_key(key) for key in self._books.api_keys()])

    def create_api_key(self, call: Call) -> Reply:
        """POST /api-keys."""
        document = self._check.document(call.body)
        name = self._check.name(document)
        return self._once(call, document, lambda key: documents.to_bytes(documents.api_key(self._books.add_key(name))))

    def delete_api_key(self, call: Call) -> Reply:
        """DELETE /api-keys/{id}: 204, empty; the key stops working at once, also when it is the caller's own."""
        with self._books.transaction():
            if not self._books.delete_key(call.path_params["id"]):
                raise Refusal(404, "API key not found")
        return Reply(NO_CONTENT, b"")

    # --- what they share ---

    def _envelope(self, envelope_id: str) -> Envelope:
        envelope = self._books.envelope(envelope_id)
        if envelope is None:
            raise _no_envelope()
        return envelope

    def _once(self, call: Call, document: Dict[str, Any], act: Callable[[Optional[str]], bytes]) -> Reply:
        """Do it, unless a request with the same idempotency key has done it: then give that one's answer again.

        The deed and the memory of it are one transaction, and the event loop runs one request at a time up to its
        commit; so of two requests with one key that arrive together, the second finds the answer of the first.
        """
        key = self._check.idempotency_key(call.idempotency_key)
        if key is None:
            with self._books.transaction():
                body = act(None)
            return Reply(self._choices.created_status, body)
        fingerprint = _fingerprint(call, document)
        known = self._books.recall(key)
        if known is not None:
            return self._repeat(known, fingerprint)
        with self._books.transaction():
            body = act(key)
            self._books.remember(key, Answer(fingerprint, self._choices.created_status, body))
        return Reply(self._choices.created_status, body)

    def _repeat(self, known: Answer, fingerprint: bytes) -> Reply:
        if known.fingerprint != fingerprint:
            self._books.count("conflicts")
            message = "Idempotency-Key was used before with a different request"
            raise Refusal(self._choices.idempotency_conflict_status, message)
        self._books.count("repeats_dropped")
        return Reply(known.status, known.body)


def _json(document: Any) -> Reply:
    return Reply(200, documents.to_bytes(document))


def _no_envelope() -> Refusal:
    return Refusal(404, "Envelope not found")


def _fingerprint(call: Call, document: Dict[str, Any]) -> bytes:
    """What makes two requests the same: the path, and the body but for the order of its fields and its spaces."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{call.path}\n{text}".encode("ascii")).digest()


def _list_in_pieces(books: Books, envelope_id: Optional[str]) -> Iterator[bytes]:
    separator = b"["
    for page in books.usage_pages(envelope_id):
        yield separator + b",".join(map(documents.usage, page))
        separator = b","
    yield b"]" if separator == b"," else b"[]"
