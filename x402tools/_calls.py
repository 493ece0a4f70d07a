"""What each call of the API is: the request it makes, and what its answer means. Who sends it, and how, is not told
here: `client` does it with threads and `_aio` on an event loop.

A function of this file checks its arguments and raises a `ValidationError` before anything is sent.
"""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Dict, Generic, Optional, TypeVar

from x402tools import _answers, _event
from x402tools._reply import Reply
from x402tools.errors import APIError, NotFoundError, ValidationError
from x402tools.models import PERIODS, ApiKey, Envelope, Usage, UsageStats

Result = TypeVar("Result")
Model = TypeVar("Model")

NEEDS_A_BUFFER = "buffered=True needs a client made with buffer=UsageBuffer(...)"


class Call(Generic[Result]):
    """One request that is answered as a whole.

    Args:
        method, path: of the request; the path is below the base URL.
        result: what the call returns, made from a successful answer.
        payload: the JSON object to send, if any.
        envelope: a 404 is about an envelope.
        key: the idempotency key of a POST. Default: one of its own for each call, the same over its attempts.
    """

    def __init__(
        self,
        method: str,
        path: str,
        result: Callable[[Reply], Result],
        *,
        payload: Optional[Dict[str, Any]] = None,
        envelope: bool = False,
        key: Optional[str] = None,
    ) -> None:
        self.method = method
        self.path = path
        self.result = result
        self.body = None if payload is None else json.dumps(payload, allow_nan=False).encode("utf-8")
        self.envelope = envelope
        self.headers = {"Idempotency-Key": key or os.urandom(16).hex()} if method == "POST" else None
        self._maybe_done = False

    def check(self, reply: Reply) -> Reply:
        """The reply, if it says that the call has succeeded.

        Raises:
            APIError: the class for its status.
        """
        try:
            return _answers.check(reply, envelope=self.envelope)
        except NotFoundError:
            if self.method == "DELETE" and self._maybe_done:  # an earlier attempt, whose answer was lost, deleted it
                return Reply(204, {}, b"")
            raise

    def __enter__(self) -> Call[Result]:
        """One attempt. How it ends is remembered for the next."""
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, APIError):
            refused = error.status_code == 429  # turned away at the door: nothing was done
            unknown = error.retryable and not refused and getattr(error, "maybe_processed", True)
            self._maybe_done = self._maybe_done or unknown


class Listing(Generic[Model]):
    """A GET that is answered with a bare JSON list, whose members are made one at a time while it arrives."""

    def __init__(
        self, path: str, member: Callable[[Dict[str, Any]], Model], query: Optional[Dict[str, str]] = None
    ) -> None:
        self.path = path
        self.member = member
        self.query = query
        self.envelope = query is not None  # the only thing to ask for is the usage of one


# -- envelopes -------------------------------------------------------------------------------------------------------


def get_envelopes() -> Listing[Envelope]:
    return Listing("/envelopes", Envelope.from_dict)


def get_envelope(envelope_id: str) -> Call[Envelope]:
    return Call("GET", _envelope_path(envelope_id), _json(Envelope.from_dict), envelope=True)


def create_envelope(name: str, limit: int, period: str, reset_day: Optional[int]) -> Call[Envelope]:
    payload = _envelope_fields(name, limit, period, reset_day)
    for field in ("name", "limit", "period"):
        if field not in payload:
            raise ValidationError(f"{field} must be given")
    return Call("POST", "/envelopes", _json(Envelope.from_dict), payload=payload)


def update_envelope(
    envelope_id: str, name: Optional[str], limit: Optional[int], period: Optional[str], reset_day: Optional[int]
) -> Call[Envelope]:
    payload = _envelope_fields(name, limit, period, reset_day)
    return Call("PUT", _envelope_path(envelope_id), _json(Envelope.from_dict), payload=payload, envelope=True)


def delete_envelope(envelope_id: str) -> Call[None]:
    return Call("DELETE", _envelope_path(envelope_id), _nothing, envelope=True)


# -- usage -----------------------------------------------------------------------------------------------------------


def record_usage(
    envelope_id: str, amount: int, metadata: Optional[Dict[str, Any]], idempotency_key: Optional[str]
) -> Call[Usage]:
    payload: Dict[str, Any] = {
        "envelopeId": _event.check_id(envelope_id, "envelope_id"),
        "amount": _event.check_amount(amount),
    }
    snapshot = _event.snapshot_metadata(metadata)
    if snapshot is not None:
        payload["metadata"] = json.loads(snapshot) if isinstance(snapshot, str) else snapshot
    key = None if idempotency_key is None else _event.check_key(idempotency_key)
    return Call("POST", "/usage", _json(Usage.from_dict), payload=payload, envelope=True, key=key)


def get_usage(envelope_id: Optional[str]) -> Listing[Usage]:
    """None and "" stand for all."""
    names_one = envelope_id is not None and envelope_id != ""
    query = {"envelopeId": _event.check_id(envelope_id, "envelope_id")} if names_one else None
    return Listing("/usage", Usage.from_dict, query)


def get_usage_stats() -> Call[UsageStats]:
    return Call("GET", "/usage/stats", _json(UsageStats.from_dict))


# -- API keys --------------------------------------------------------------------------------------------------------


def get_api_keys() -> Listing[ApiKey]:
    return Listing("/api-keys", ApiKey.from_dict)


def create_api_key(name: str) -> Call[ApiKey]:
    return Call("POST", "/api-keys", _json(ApiKey.from_dict), payload={"name": _text(name, "name")})


def delete_api_key(key_id: str) -> Call[None]:
    return Call("DELETE", "/api-keys/" + _event.path_segment(key_id, "key_id"), _nothing)


# -- their parts -----------------------------------------------------------------------------------------------------


def _json(build: Callable[[Any], Model]) -> Callable[[Reply], Model]:
    return lambda reply: _answers.parse(reply, build)


def _nothing(_: Reply) -> None:
    return None


def _envelope_path(envelope_id: str) -> str:
    return "/envelopes/" + _event.path_segment(envelope_id, "envelope_id")


def _text(value: object, argument: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 1000:
        raise ValidationError(f"{argument} must be a str of 1 to 1000 characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair; JSON would carry it, and nobody could read it
        raise ValidationError(f"{argument} must be text that UTF-8 can encode") from None
    return value


def _envelope_fields(
    name: Optional[str], limit: Optional[int], period: Optional[str], reset_day: Optional[int]
) -> Dict[str, Any]:
    """The JSON fields of an envelope that are given, checked."""
    fields: Dict[str, Any] = {}
    if name is not None:
        fields["name"] = _text(name, "name")
    if limit is not None:
        if type(limit) is not int or not 0 <= limit <= _event.LARGEST_AMOUNT:
            raise ValidationError("limit must be a whole number from 0 to 2**53 - 1")
        fields["limit"] = limit
    if period is not None:
        if period not in PERIODS:
            raise ValidationError(f"period must be one of {', '.join(PERIODS)}")
        fields["period"] = period
    if reset_day is not None:
        if type(reset_day) is not int or not 0 <= reset_day <= 366:
            raise ValidationError("reset_day must be a whole number, the day of the period")
        fields["resetDay"] = reset_day
    return fields
