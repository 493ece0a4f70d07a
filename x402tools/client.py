"""`X402Client`: one short method for each endpoint of the API, every call synchronous unless it has a buffer."""

from __future__ import annotations

import json
import logging
import os
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

from x402tools import _answers, _event
from x402tools._http import Bearer, Timeouts, Transport, check_api_key, check_base_url, new_session
from x402tools._lean import Reply
from x402tools.errors import APIError, NotFoundError, ValidationError
from x402tools.models import PERIODS, ApiKey, Envelope, PeriodType, Usage, UsageStats

if TYPE_CHECKING:
    import requests

    from x402tools.buffer import FlushResult, UsageBuffer

__all__ = ["X402Client"]

log = logging.getLogger("x402tools")

DEFAULT_BASE_URL = "https://stakefy-usage-envelope-production.up.railway.app"

# Seconds for a whole call with its retries. Three attempts that each run into the read time-out still fit.
DEFAULT_TOTAL = 60.0

# Once a client. The status decides, because sending again what was booked bills twice; but whatever answers every POST
# with a page is hardly the service, and usage would go there for ever.
_PAGE = "POST /usage was answered %d with a page for people; that counts as delivered, but check base_url and proxies"

TimeoutSetting = Union[float, Tuple[float, float], Tuple[float, float, float]]


class X402Client:
    """A client of the x402 Usage-Based Billing API; serves many threads, and forked children too.

    Args:
        api_key: the key, or a callable that returns it and is asked before every request, so that a key can be
            replaced while the service runs. Default: the environment variable X402TOOLS_API_KEY.
        base_url: default: X402TOOLS_BASE_URL, or else the hosted service.
        timeout: seconds to connect, and seconds for the head of an answer and between two pieces of its body; a third
            number bounds a whole call with its retries (default 60). One number stands for the first two.
        max_retries: how many attempts may follow a failed one, for errors that say that trying again can help. A POST
            is repeated under the same `Idempotency-Key`.
        session: a `requests.Session` of your own; its adapters, proxies and certificates rule. The head of an answer
            is bounded piece by piece only, over its adapters.
        buffer: a `UsageBuffer`; then `record_usage` returns at once and the buffer delivers. `close()` closes it too.
        allow_http: accept an http base URL that is not this machine; the key then travels unprotected.

    Raises:
        ValidationError: an argument is not usable, or no API key is to be found.
        SpoolError: the buffer's spool cannot be used for this base URL.
    """

    def __init__(
        self,
        api_key: Union[str, Callable[[], str], None] = None,
        base_url: Optional[str] = None,
        *,
        timeout: TimeoutSetting = (5.0, 15.0),
        max_retries: int = 2,
        session: Optional[requests.Session] = None,
        buffer: Optional[UsageBuffer] = None,
        allow_http: bool = False,
    ) -> None:
        self._key = key = _Key(_key_provider(api_key))
        self._allow_http = allow_http
        url = base_url if base_url is not None else os.environ.get("X402TOOLS_BASE_URL") or DEFAULT_BASE_URL
        self._timeouts = _timeouts(timeout)
        if type(max_retries) is not int or max_retries < 0:
            raise ValidationError("max_retries must be a whole number from 0")
        self._max_retries = max_retries
        bearer = Bearer(lambda: key.provide())
        url = check_base_url(url, allow_http)
        self._transport = Transport(url, bearer, session or new_session(bearer), self._timeouts)
        self._owns_session = session is None
        self._buffer = buffer
        if buffer is not None:
            buffer.attach(_Deliver(self._transport), url)

    @property
    def api_key(self) -> str:
        """The key as it is now. Assigning another one (or a callable) changes it for every request from then on."""
        return self._key.provide()

    @api_key.setter
    def api_key(self, api_key: Union[str, Callable[[], str]]) -> None:
        self._key.provide = _key_provider(api_key)

    @property
    def base_url(self) -> str:
        """Where requests go, without a trailing slash. It cannot be changed under a buffer, whose spool is bound."""
        return self._transport.base_url

    @base_url.setter
    def base_url(self, base_url: str) -> None:
        if self._buffer is not None:
            raise ValidationError("base_url cannot be changed under a buffer: make another client and another buffer")
        self._transport.move(check_base_url(base_url, self._allow_http))

    @property
    def session(self) -> requests.Session:
        """The `requests.Session` that carries the requests."""
        return self._transport.session

    @property
    def buffer(self) -> Optional[UsageBuffer]:
        """The buffer that was given, or None."""
        return self._buffer

    # -- envelopes -----------------------------------------------------------------------------------------------

    def get_envelopes(self) -> List[Envelope]:
        """All envelopes of the organization."""
        return list(self._list("/envelopes", Envelope.from_dict))

    def get_envelope(self, envelope_id: str) -> Envelope:
        """One envelope.

        Raises:
            EnvelopeNotFoundError: there is none with this id.
        """
        return _answers.parse(self._call("GET", _envelope_path(envelope_id), envelope=True), Envelope.from_dict)

    def create_envelope(self, name: str, limit: int, period: PeriodType, reset_day: Optional[int] = None) -> Envelope:
        """Creates an envelope of `limit` units of usage per `period`.

        Args:
            name: for people.
            limit: units of usage, a whole number from 0.
            period: "DAILY", "WEEKLY", "MONTHLY" or "YEARLY".
            reset_day: the day on which the period starts anew, the 1st of the month for example; sent when given.
        """
        payload = _envelope_fields(name, limit, period, reset_day)
        for field in ("name", "limit", "period"):
            if field not in payload:
                raise ValidationError(f"{field} must be given")
        return _answers.parse(self._call("POST", "/envelopes", payload=payload), Envelope.from_dict)

    def update_envelope(
        self,
        envelope_id: str,
        name: Optional[str] = None,
        limit: Optional[int] = None,
        period: Optional[PeriodType] = None,
        reset_day: Optional[int] = None,
    ) -> Envelope:
        """Changes the fields that are given and leaves the others.

        Raises:
            EnvelopeNotFoundError: there is no envelope with this id.
        """
        payload = _envelope_fields(name, limit, period, reset_day)
        reply = self._call("PUT", _envelope_path(envelope_id), payload=payload, envelope=True)
        return _answers.parse(reply, Envelope.from_dict)

    def delete_envelope(self, envelope_id: str) -> None:
        """Deletes an envelope.

        Raises:
            EnvelopeNotFoundError: there is none with this id.
        """
        self._call("DELETE", _envelope_path(envelope_id), envelope=True)

    # -- usage ---------------------------------------------------------------------------------------------------

    def record_usage(
        self,
        envelope_id: str,
        amount: int,
        metadata: Optional[Dict[str, Any]] = None,
        *,
        buffered: Optional[bool] = None,
        idempotency_key: Optional[str] = None,
    ) -> Usage:
        """Records usage of an envelope: through the buffer when there is one, else by waiting for the service.

        Args:
            envelope_id: the envelope that pays.
            amount: units of usage, a whole number from 0 to 2**53 - 1.
            metadata: anything JSON can say, up to 64 KiB; sent when not empty.
            buffered: False waits for the service's answer although there is a buffer; True insists on a buffer.
            idempotency_key: a key of your own (an order number, a request id): the service books what comes under
                one key once. Default: a new one for every call.

        Returns:
            The service's record; from the buffer one whose `pending` is True and whose `id` is the event's own.

        Raises:
            ValidationError: an argument is not usable; nothing was sent or stored.
            QueueFullError: the buffer is full and was made with `on_queue_full="raise"`.
            APIError: only without the buffer.
        """
        buffer = self._buffer
        if buffer is not None and buffered is not False:
            if idempotency_key is None:  # apart, because this is the request path and passing a keyword takes its time
                return buffer.record(envelope_id, amount, metadata)
            return buffer.record(envelope_id, amount, metadata, idempotency_key=idempotency_key)
        if buffered:
            raise ValidationError("buffered=True needs a client made with buffer=UsageBuffer(...)")
        payload: Dict[str, Any] = {
            "envelopeId": _event.check_id(envelope_id, "envelope_id"),
            "amount": _event.check_amount(amount),
        }
        snapshot = _event.snapshot_metadata(metadata)
        if snapshot is not None:
            payload["metadata"] = json.loads(snapshot) if isinstance(snapshot, str) else snapshot
        key = None if idempotency_key is None else _event.check_key(idempotency_key)
        reply = self._call("POST", "/usage", payload=payload, envelope=True, key=key)
        return _answers.parse(reply, Usage.from_dict)

    def get_usage(self, envelope_id: Optional[str] = None) -> List[Usage]:
        """All usage records, or those of one envelope; "" stands for all, too. For many records see `iter_usage`."""
        return list(self.iter_usage(envelope_id))

    def iter_usage(self, envelope_id: Optional[str] = None) -> Iterator[Usage]:
        """Yields the usage records while they arrive, keeping none of them.

        A failure before the first record is tried again like any other call; one in the middle is raised.
        """
        names_one = envelope_id is not None and envelope_id != ""
        query = {"envelopeId": _event.check_id(envelope_id, "envelope_id")} if names_one else None
        return self._list("/usage", Usage.from_dict, query)

    def get_usage_stats(self) -> UsageStats:
        """Totals over all envelopes."""
        return _answers.parse(self._call("GET", "/usage/stats"), UsageStats.from_dict)

    # -- API keys ------------------------------------------------------------------------------------------------

    def get_api_keys(self) -> List[ApiKey]:
        """All API keys of the organization."""
        return list(self._list("/api-keys", ApiKey.from_dict))

    def create_api_key(self, name: str) -> ApiKey:
        """Creates an API key; its `key` is a secret, masked in the repr."""
        return _answers.parse(self._call("POST", "/api-keys", payload={"name": _text(name, "name")}), ApiKey.from_dict)

    def delete_api_key(self, key_id: str) -> None:
        """Deletes an API key.

        Raises:
            NotFoundError: there is none with this id.
        """
        self._call("DELETE", "/api-keys/" + _event.path_segment(key_id, "key_id"))

    # -- life ----------------------------------------------------------------------------------------------------

    def flush(self, timeout: Optional[float] = 10.0) -> FlushResult:
        """Waits until the buffer has delivered what was recorded before this call; see `UsageBuffer.flush`."""
        if self._buffer is None:
            raise ValidationError("flush() needs a client made with buffer=UsageBuffer(...)")
        return self._buffer.flush(timeout)

    def close(self, timeout: Optional[float] = None) -> None:
        """Closes the buffer, if there is one (see `UsageBuffer.close`), and the connections. May be called twice."""
        if self._buffer is not None:
            self._buffer.close(timeout)
        if self._owns_session:
            self._transport.close()

    def __enter__(self) -> X402Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<X402Client {self.base_url}{' buffered' if self._buffer is not None else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError("X402Client holds an API key and connections and is not pickled: make one in each process")

    # -- how a call is made --------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        *,
        payload: Optional[Dict[str, Any]] = None,
        envelope: bool = False,
        key: Optional[str] = None,
    ) -> Reply:
        """One call with its retries. `envelope`: a 404 is about an envelope."""
        from x402tools import _retry  # tenacity takes longer to import than all the rest, and a script may not call

        body = None if payload is None else json.dumps(payload, allow_nan=False).encode("utf-8")
        headers = {"Idempotency-Key": key or os.urandom(16).hex()} if method == "POST" else None
        deadline = time.monotonic() + self._timeouts.total
        maybe_done = False

        def attempt() -> Reply:
            nonlocal maybe_done
            try:
                reply = self._transport.send(method, path, body=body, headers=headers, deadline=deadline)
                return _answers.check(reply, envelope=envelope)
            except NotFoundError:
                if method == "DELETE" and maybe_done:  # an earlier attempt, whose answer was lost, has deleted it
                    return Reply(204, {}, b"")
                raise
            except APIError as error:
                refused = error.status_code == 429  # turned away at the door: nothing was done
                maybe_done = maybe_done or (error.retryable and not refused and getattr(error, "maybe_processed", True))
                raise

        return _retry.call_with_retries(attempt, max_retries=self._max_retries, deadline=deadline)

    def _list(
        self, path: str, build: Callable[[Dict[str, Any]], Any], query: Optional[Dict[str, str]] = None
    ) -> Iterator[Any]:
        """The members of a bare JSON list, one at a time. The request is made when the first is asked for."""
        from x402tools import _retry  # see _call

        deadline = time.monotonic() + self._timeouts.total

        def attempt() -> Tuple[List[Any], Iterator[Any]]:
            reply, pieces = self._transport.stream(path, query=query, deadline=deadline)
            members = _answers.members(_answers.check(reply, envelope=query is not None), pieces, build)
            return list(islice(members, 1)), members  # up to the first member nothing is given away yet

        first, rest = _retry.call_with_retries(attempt, max_retries=self._max_retries, deadline=deadline)
        yield from first
        yield from rest


class _Deliver:
    """One attempt at a buffered POST: returns when the service has it, raises an `X402Error` otherwise.

    Knows no client: the buffer's threads, which hold this, would keep a forgotten client and its buffer alive for ever.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._page_was_told = False

    def __call__(self, body: bytes, key: str) -> None:
        reply = _answers.check(self._transport.post_usage(body, key), envelope=True)
        if not self._page_was_told and _answers.is_page(reply):
            self._page_was_told = True
            log.warning(_PAGE, reply.status)


class _Key:
    """Where a client and what authenticates its requests both find the key; it may be exchanged. Apart from the client
    for the same reason as `_Deliver`."""

    def __init__(self, provide: Callable[[], str]) -> None:
        self.provide = provide


def _key_provider(api_key: Union[str, Callable[[], str], None]) -> Callable[[], str]:
    """A function that returns the key. The key itself stays in its closure, out of `vars(client)`."""
    if callable(api_key):
        return api_key
    found = api_key if api_key is not None else os.environ.get("X402TOOLS_API_KEY")
    if found is None:
        raise ValidationError("api_key must be given, or the environment variable X402TOOLS_API_KEY set")
    key = check_api_key(found)
    return lambda: key


def _timeouts(timeout: TimeoutSetting) -> Timeouts:
    numbers = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    usable = all(type(number) in (int, float) and 0 < number <= 86400 for number in numbers)
    if not usable or len(numbers) not in (2, 3):
        raise ValidationError("timeout must be seconds above 0: a number, (connect, read) or (connect, read, total)")
    connect, read = numbers[0], numbers[1]
    return Timeouts(connect, read, numbers[2] if len(numbers) == 3 else max(DEFAULT_TOTAL, connect + read))


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
