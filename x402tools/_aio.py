"""`client.aio`: the calls of `X402Client` on an event loop (asyncio). What each call is, `_calls` says for both."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, AsyncGenerator, AsyncIterator, Callable, Dict, List, Optional, Tuple, TypeVar

from x402tools import _answers, _calls
from x402tools._calls import Call, Listing, Model, Result
from x402tools._reply import Reply
from x402tools.errors import MissingExtraError, ValidationError
from x402tools.models import ApiKey, Envelope, PeriodType, Usage, UsageStats

if TYPE_CHECKING:
    from x402tools._budget import Budget, BudgetWatch
    from x402tools._httpx import AsyncTransport
    from x402tools.buffer import FlushResult, Reconciliation
    from x402tools.client import X402Client

Returned = TypeVar("Returned")

_making = threading.Lock()  # so that the loops of several threads get one transport; held for a moment


class AsyncCalls:
    """The calls of a client, awaited: the same arguments, results, errors, retries and time limits.

    Nothing here blocks the event loop: what takes longer than a moment (reading certificates the first time, an
    `api_key` that is a callable, a buffer that waits for its disk) is done in a thread of the loop's executor.
    """

    def __init__(self, client: X402Client) -> None:
        self._client = client

    # -- envelopes -----------------------------------------------------------------------------------------------

    async def get_envelopes(self) -> List[Envelope]:
        """See `X402Client.get_envelopes`."""
        return await self._whole_list(_calls.get_envelopes())

    async def get_envelope(self, envelope_id: str) -> Envelope:
        """See `X402Client.get_envelope`."""
        return await self._perform(_calls.get_envelope(envelope_id))

    async def create_envelope(
        self, name: str, limit: int, period: PeriodType, reset_day: Optional[int] = None
    ) -> Envelope:
        """See `X402Client.create_envelope`."""
        return await self._perform(_calls.create_envelope(name, limit, period, reset_day))

    async def update_envelope(
        self,
        envelope_id: str,
        name: Optional[str] = None,
        limit: Optional[int] = None,
        period: Optional[PeriodType] = None,
        reset_day: Optional[int] = None,
    ) -> Envelope:
        """See `X402Client.update_envelope`."""
        return await self._perform(_calls.update_envelope(envelope_id, name, limit, period, reset_day))

    async def delete_envelope(self, envelope_id: str) -> None:
        """See `X402Client.delete_envelope`."""
        await self._perform(_calls.delete_envelope(envelope_id))

    # -- usage ---------------------------------------------------------------------------------------------------

    async def record_usage(
        self,
        envelope_id: str,
        amount: int,
        metadata: Optional[Dict[str, Any]] = None,
        *,
        buffered: Optional[bool] = None,
        idempotency_key: Optional[str] = None,
    ) -> Usage:
        """See `X402Client.record_usage`. Through a buffer it returns at once, and needs no extra."""
        buffer = self._client.buffer
        if buffered is not False and buffer is not None:
            record = partial(buffer.record, envelope_id, amount, metadata, idempotency_key=idempotency_key)
            return await _in_thread(record) if buffer.may_wait() else record()
        if buffered:
            raise ValidationError(_calls.NEEDS_A_BUFFER)
        return await self._perform(_calls.record_usage(envelope_id, amount, metadata, idempotency_key))

    async def get_usage(self, envelope_id: Optional[str] = None) -> List[Usage]:
        """See `X402Client.get_usage`."""
        return await self._whole_list(_calls.get_usage(envelope_id))

    def iter_usage(self, envelope_id: Optional[str] = None) -> AsyncIterator[Usage]:
        """See `X402Client.iter_usage`: `async for usage in client.aio.iter_usage()`."""
        return self._list(_calls.get_usage(envelope_id))

    async def get_usage_stats(self) -> UsageStats:
        """See `X402Client.get_usage_stats`."""
        return await self._perform(_calls.get_usage_stats())

    # -- API keys ------------------------------------------------------------------------------------------------

    async def get_api_keys(self) -> List[ApiKey]:
        """See `X402Client.get_api_keys`."""
        return await self._whole_list(_calls.get_api_keys())

    async def create_api_key(self, name: str) -> ApiKey:
        """See `X402Client.create_api_key`."""
        return await self._perform(_calls.create_api_key(name))

    async def delete_api_key(self, key_id: str) -> None:
        """See `X402Client.delete_api_key`."""
        await self._perform(_calls.delete_api_key(key_id))

    # -- budgets and what is held: several requests each, made by the client itself in a thread ------------------------

    async def budget(self, envelope_id: str) -> Budget:
        """See `X402Client.budget`."""
        return await _in_thread(partial(self._client.budget, envelope_id))

    async def on_budget(
        self, envelope_id: str, threshold: float, callback: Callable[[Budget], object], *, refresh: float = 60.0
    ) -> BudgetWatch:
        """See `X402Client.on_budget`; the callback is called on a thread of its own, not on the loop."""
        return await _in_thread(partial(self._client.on_budget, envelope_id, threshold, callback, refresh=refresh))

    async def reconcile(self, *, resend: bool = False, settle: bool = False, min_age: float = 5.0) -> Reconciliation:
        """See `X402Client.reconcile`."""
        return await _in_thread(partial(self._client.reconcile, resend=resend, settle=settle, min_age=min_age))

    # -- life ----------------------------------------------------------------------------------------------------

    async def flush(self, timeout: Optional[float] = 10.0) -> FlushResult:
        """See `X402Client.flush`. Cancelling it only ends the waiting."""
        return await _in_thread(partial(self._client.flush, timeout))

    async def close(self, timeout: Optional[float] = None) -> None:
        """Closes all of the client (see `X402Client.close`) and the connections of this event loop."""
        await _in_thread(partial(self._client.close, timeout))
        if self._client._async_transport is not None:
            await self._client._async_transport.close()

    async def __aenter__(self) -> AsyncCalls:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{self._client!r}.aio"

    # -- how a call is made --------------------------------------------------------------------------------------

    async def _perform(self, call: Call[Result]) -> Result:
        """One call with its retries."""
        transport = await self._transport()
        from x402tools import _retry  # it is there by now, see _make_transport

        deadline = time.monotonic() + self._client._timeouts.total

        async def attempt() -> Reply:
            with call:
                reply = await transport.send(
                    call.method, call.path, body=call.body, headers=call.headers, deadline=deadline
                )
                return call.check(reply)

        retries = self._client._max_retries
        reply = await _retry.call_with_retries_async(
            attempt, max_retries=retries, deadline=deadline, sleep=asyncio.sleep
        )
        return call.result(reply)

    async def _list(self, listing: Listing[Model]) -> AsyncGenerator[Model, None]:
        """The members of the list, one at a time. The request is made when the first is asked for."""
        transport = await self._transport()
        from x402tools import _retry  # see _perform

        deadline = time.monotonic() + self._client._timeouts.total

        async def attempt() -> Tuple[List[Model], AsyncGenerator[Model, None]]:
            reply, pieces = await transport.stream(listing.path, query=listing.query, deadline=deadline)
            _answers.check(reply, envelope=listing.envelope)
            members = _answers.members_as_they_come(reply, pieces, listing.member)
            return await _at_most_one(members), members  # up to the first member nothing is given away yet

        retries = self._client._max_retries
        first, rest = await _retry.call_with_retries_async(
            attempt, max_retries=retries, deadline=deadline, sleep=asyncio.sleep
        )
        try:
            for member in first:
                yield member
            async for member in rest:
                yield member
        finally:
            await rest.aclose()

    async def _whole_list(self, listing: Listing[Model]) -> List[Model]:
        return [member async for member in self._list(listing)]

    async def _transport(self) -> AsyncTransport:
        found = self._client._async_transport
        if found is None:
            await _in_thread(partial(_make_transport, self._client))  # importing takes longer than a moment
            found = self._client._async_transport
            assert found is not None
        return found


async def _at_most_one(members: AsyncIterator[Model]) -> List[Model]:
    try:
        return [await members.__anext__()]
    except StopAsyncIteration:
        return []


async def _in_thread(function: Callable[[], Returned]) -> Returned:
    return await asyncio.get_running_loop().run_in_executor(None, function)


def _make_transport(client: X402Client) -> None:
    try:
        from x402tools import _httpx, _retry  # noqa: F401 - the second so that it is there
    except ImportError as error:
        if error.name and error.name.split(".")[0] in ("httpx", "anyio"):
            raise MissingExtraError("client.aio", "async") from None
        raise
    key, transport = client._key, client._transport

    async def authorization() -> str:
        return await _in_thread(transport.bearer.header) if key.may_wait else transport.bearer.header()

    with _making:
        if client._async_transport is None:
            client._async_transport = _httpx.AsyncTransport(transport, authorization, client._timeouts)
