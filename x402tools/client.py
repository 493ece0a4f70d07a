"""`X402Client`: one short method for each endpoint of the API, every call synchronous unless it has a buffer."""

from __future__ import annotations

import logging
import os
import time
import weakref
from itertools import islice
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

from x402tools import _answers, _calls
from x402tools._calls import Call, Listing, Model, Result
from x402tools._http import Bearer, Transport, check_api_key, check_base_url, new_session
from x402tools._reply import Reply, Timeouts
from x402tools.errors import ValidationError
from x402tools.models import ApiKey, Envelope, PeriodType, Usage, UsageStats

if TYPE_CHECKING:
    import requests

    from x402tools._aio import AsyncCalls
    from x402tools._budget import Budget, BudgetWatch
    from x402tools._httpx import AsyncTransport
    from x402tools._metered import Meter, Metered, MeteredCall
    from x402tools.buffer import FlushResult, Reconciliation, UsageBuffer

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
        self._key = key = _Key(api_key)
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
        self._async_transport: Optional[AsyncTransport] = None
        self._buffer = buffer
        if buffer is not None:
            buffer.attach(_Deliver(self._transport), url, _usage_reader(self))

    @property
    def api_key(self) -> str:
        """The key as it is now. Assigning another one (or a callable) changes it for every request from then on."""
        return self._key.provide()

    @api_key.setter
    def api_key(self, api_key: Union[str, Callable[[], str]]) -> None:
        self._key.exchange(api_key)

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

    @property
    def aio(self) -> AsyncCalls:
        """Every call of this client for an event loop: `await client.aio.get_envelopes()`. Needs the extra `async`,
        except for `record_usage` through a buffer."""
        from x402tools._aio import AsyncCalls  # asyncio is slow to import, and most programs have no event loop

        return AsyncCalls(self)

    # -- envelopes -----------------------------------------------------------------------------------------------

    def get_envelopes(self) -> List[Envelope]:
        """All envelopes of the organization."""
        return list(self._list(_calls.get_envelopes()))

    def get_envelope(self, envelope_id: str) -> Envelope:
        """One envelope.

        Raises:
            EnvelopeNotFoundError: there is none with this id.
        """
        return self._perform(_calls.get_envelope(envelope_id))

    def create_envelope(self, name: str, limit: int, period: PeriodType, reset_day: Optional[int] = None) -> Envelope:
        """Creates an envelope of `limit` units of usage per `period`.

        Args:
            name: for people.
            limit: units of usage, a whole number from 0.
            period: "DAILY", "WEEKLY", "MONTHLY" or "YEARLY".
            reset_day: the day on which the period starts anew, the 1st of the month for example; sent when given.
        """
        return self._perform(_calls.create_envelope(name, limit, period, reset_day))

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
        return self._perform(_calls.update_envelope(envelope_id, name, limit, period, reset_day))

    def delete_envelope(self, envelope_id: str) -> None:
        """Deletes an envelope.

        Raises:
            EnvelopeNotFoundError: there is none with this id.
        """
        self._perform(_calls.delete_envelope(envelope_id))

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
            raise ValidationError(_calls.NEEDS_A_BUFFER)
        return self._perform(_calls.record_usage(envelope_id, amount, metadata, idempotency_key))

    def get_usage(self, envelope_id: Optional[str] = None) -> List[Usage]:
        """All usage records, or those of one envelope; "" stands for all, too. For many records see `iter_usage`."""
        return list(self.iter_usage(envelope_id))

    def iter_usage(self, envelope_id: Optional[str] = None) -> Iterator[Usage]:
        """Yields the usage records while they arrive, keeping none of them.

        A failure before the first record is tried again like any other call; one in the middle is raised.
        """
        return self._list(_calls.get_usage(envelope_id))

    def get_usage_stats(self) -> UsageStats:
        """Totals over all envelopes."""
        return self._perform(_calls.get_usage_stats())

    def metered(
        self,
        envelope_id: Union[str, Callable[[MeteredCall], Optional[str]]],
        *,
        amount: Union[int, Callable[[MeteredCall], int]] = 1,
        metadata: Union[Dict[str, Any], Callable[[MeteredCall], Optional[Dict[str, Any]]], None] = None,
        idempotency_key: Optional[Callable[[MeteredCall], Optional[str]]] = None,
        count_errors: bool = False,
    ) -> Metered:
        """A decorator: each call of the function is recorded when it is over. Recording never fails the call.

        For plain functions, coroutines and both kinds of generators (over when they are finished or closed). Each
        argument is a value, or a function of the `MeteredCall`; an envelope of None leaves the call uncounted.

        Args:
            envelope_id, amount, metadata, idempotency_key: as for `record_usage`.
            count_errors: count calls that raised, too.
        """
        from x402tools._metered import Metered

        return Metered(self, envelope_id, amount, metadata, idempotency_key, count_errors)

    def meter(
        self,
        envelope_id: Optional[str],
        amount: int = 1,
        metadata: Optional[Dict[str, Any]] = None,
        *,
        idempotency_key: Optional[str] = None,
        count_errors: bool = False,
    ) -> Meter:
        """`with client.meter(...) as usage:` (or `async with`) records the block when it ends, and never fails it.

        The block may set `usage.amount`, `usage.metadata`, `usage.envelope_id` and `usage.idempotency_key`. One that
        raises is not recorded, unless `count_errors`.
        """
        from x402tools._metered import Meter

        return Meter(self, envelope_id, amount, metadata, idempotency_key, count_errors)

    # -- budgets -------------------------------------------------------------------------------------------------

    def budget(self, envelope_id: str) -> Budget:
        """How much of an envelope is left in its current period, what waits in the buffer included.

        Two or three requests: the envelope, the statistics, and, unless those tell what the envelope has used in its
        period, its usage records, of which there may be many; see `_budget` for the details, and `_periods` for when
        a period resets. For a decision on a request path see `on_budget`, which counts along.

        Raises:
            EnvelopeNotFoundError: there is no envelope with this id.
            ValidationError: its period is of a kind that this version does not know.
            SpoolError: the buffer's spool cannot be read.
        """
        from x402tools._budget import look

        return look(self, envelope_id)

    def on_budget(
        self, envelope_id: str, threshold: float, callback: Callable[[Budget], object], *, refresh: float = 60.0
    ) -> BudgetWatch:
        """Has `callback(budget)` called once a period when used and pending usage reach a share of the limit.

        The service is asked in the background, at once and then at most every `refresh` seconds while usage is
        recorded; in between, what this process records is counted along. So the call may come up to `refresh` seconds
        late for what other machines use, and again after a restart of this process. Needs a buffer, on whose thread
        of callbacks it runs; what it raises is logged.

        Args:
            envelope_id: the envelope.
            threshold: a share of the limit, above 0 and up to 1; 0.8 for 80 per cent.
            callback: called with the `Budget`.
            refresh: seconds.

        Returns:
            The watch; its `budget` is what is known now, `cancel()` ends it.
        """
        from x402tools._budget import BudgetWatch

        if self._buffer is None:
            raise ValidationError("on_budget() needs a client made with buffer=UsageBuffer(...)")
        return self._buffer.add_watch(BudgetWatch(self, envelope_id, threshold, callback, refresh))

    # -- API keys ------------------------------------------------------------------------------------------------

    def get_api_keys(self) -> List[ApiKey]:
        """All API keys of the organization."""
        return list(self._list(_calls.get_api_keys()))

    def create_api_key(self, name: str) -> ApiKey:
        """Creates an API key; its `key` is a secret, masked in the repr."""
        return self._perform(_calls.create_api_key(name))

    def delete_api_key(self, key_id: str) -> None:
        """Deletes an API key.

        Raises:
            NotFoundError: there is none with this id.
        """
        self._perform(_calls.delete_api_key(key_id))

    # -- life ----------------------------------------------------------------------------------------------------

    def flush(self, timeout: Optional[float] = 10.0) -> FlushResult:
        """Waits until the buffer has delivered what was recorded before this call; see `UsageBuffer.flush`."""
        if self._buffer is None:
            raise ValidationError("flush() needs a client made with buffer=UsageBuffer(...)")
        return self._buffer.flush(timeout)

    def reconcile(self, *, resend: bool = False, settle: bool = False, min_age: float = 5.0) -> Reconciliation:
        """Moves on what the buffer holds because its outcome is unknown; see `UsageBuffer.reconcile`."""
        if self._buffer is None:
            raise ValidationError("reconcile() needs a client made with buffer=UsageBuffer(...)")
        return self._buffer.reconcile(resend=resend, settle=settle, min_age=min_age)

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

    def _perform(self, call: Call[Result]) -> Result:
        """One call with its retries."""
        from x402tools import _retry  # tenacity takes longer to import than all the rest, and a script may not call

        deadline = time.monotonic() + self._timeouts.total

        def attempt() -> Reply:
            with call:
                reply = self._transport.send(
                    call.method, call.path, body=call.body, headers=call.headers, deadline=deadline
                )
                return call.check(reply)

        return call.result(_retry.call_with_retries(attempt, max_retries=self._max_retries, deadline=deadline))

    def _list(self, listing: Listing[Model]) -> Iterator[Model]:
        """The members of the list, one at a time. The request is made when the first is asked for."""
        from x402tools import _retry  # see _perform

        deadline = time.monotonic() + self._timeouts.total

        def attempt() -> Tuple[List[Model], Iterator[Model]]:
            reply, pieces = self._transport.stream(listing.path, query=listing.query, deadline=deadline)
            members = _answers.members(_answers.check(reply, envelope=listing.envelope), pieces, listing.member)
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


def _usage_reader(client: X402Client) -> Callable[[str], Iterator[Usage]]:
    """What the buffer of a client reads usage by. Does not keep the client alive, as the buffer would for ever."""
    reference = weakref.ref(client)

    def read(envelope_id: str) -> Iterator[Usage]:
        client = reference()
        if client is None:
            raise ValidationError("reconcile() needs the buffer's client, and that is gone")
        return client.iter_usage(envelope_id)

    return read


class _Key:
    """Where a client and what authenticates its requests both find the key; it may be exchanged. Apart from the client
    for the same reason as `_Deliver`."""

    def __init__(self, api_key: Union[str, Callable[[], str], None]) -> None:
        self.exchange(api_key)

    def exchange(self, api_key: Union[str, Callable[[], str], None]) -> None:
        self.provide = _key_provider(api_key)
        self.may_wait = callable(api_key)  # the user's own code, which may ask a vault over the network


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
