"""Metering of functions and of blocks of code: `@client.metered(...)` and `with client.meter(...)`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from typing import TYPE_CHECKING, Any, AsyncGenerator, Callable, Dict, Generator, Optional, Tuple, TypeVar, cast

from x402tools._metering import (
    AmountSource,
    EnvelopeSource,
    KeySource,
    MetadataSource,
    Record,
    Recorder,
    check_recordable,
    is_plain,
    may_wait,
)

if TYPE_CHECKING:
    from x402tools.client import X402Client

Function = TypeVar("Function", bound=Callable[..., Any])


class MeteredCall:
    """One call of a metered function, as the functions that decide about it see it.

    Attributes:
        args, kwargs: what the function was called with.
        result: what it returned; None for a generator, and when it raised.
        error: what it raised, or None.
        seconds: how long it took; a generator, until it was finished or closed.
    """

    def __init__(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.result: Any = None
        self.error: Optional[BaseException] = None
        self.seconds = 0.0
        self._began = time.perf_counter()

    def end(self, error: Optional[BaseException]) -> None:
        """It is over. A generator that its consumer closes early has not failed."""
        self.seconds = time.perf_counter() - self._began
        self.error = None if isinstance(error, GeneratorExit) else error


class Metered:
    """Makes metered functions of plain ones: what `X402Client.metered` returns. It explains the arguments.

    Attributes:
        failures: calls in this process that were to be counted and could not be.
    """

    def __init__(
        self,
        client: X402Client,
        envelope_id: EnvelopeSource,
        amount: AmountSource,
        metadata: MetadataSource,
        idempotency_key: KeySource,
        count_errors: bool,
    ) -> None:
        self._count_errors = count_errors
        self._recorder = Recorder(client, envelope_id, amount, metadata, idempotency_key)

    @property
    def failures(self) -> int:
        return self._recorder.failures

    def __call__(self, function: Function) -> Function:
        wrappers = (
            (inspect.isasyncgenfunction, self._async_generator),
            (inspect.iscoroutinefunction, self._coroutine),
            (inspect.isgeneratorfunction, self._generator),
        )
        make = next((wrapper for fits, wrapper in wrappers if fits(function)), self._plain)
        return cast(Function, functools.wraps(function)(make(function)))

    def _plain(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*args: Any, **kwargs: Any) -> Any:
            with _Ending(self, MeteredCall(args, kwargs)) as call:
                call.result = function(*args, **kwargs)
            return call.result

        return metered

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            with _Ending(self, MeteredCall(args, kwargs)) as call:
                call.result = yield from function(*args, **kwargs)
            return call.result

        return metered

    def _coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def metered(*args: Any, **kwargs: Any) -> Any:
            async with _Ending(self, MeteredCall(args, kwargs)) as call:
                call.result = await function(*args, **kwargs)
            return call.result

        return metered

    def _async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def metered(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            async with _Ending(self, MeteredCall(args, kwargs)):
                generator = function(*args, **kwargs)
                try:
                    advance, sent = generator.asend, None
                    while True:
                        try:
                            value = await advance(sent)
                        except StopAsyncIteration:
                            return
                        try:
                            advance, sent = generator.asend, (yield value)
                        except GeneratorExit:
                            raise
                        except BaseException as error:  # noqa: BLE001 - thrown in by the consumer: for the function
                            advance, sent = generator.athrow, error
                finally:
                    await generator.aclose()

        return metered

    def record_of(self, call: MeteredCall) -> Optional[Record]:
        """What is to be recorded for a call that is over."""
        if call.error is not None and not self._count_errors:
            return None
        return self._recorder.work_out(call)

    def store(self, record: Optional[Record]) -> None:
        """Records what was worked out, on this thread."""
        if record is not None:
            self._recorder.store(record)

    async def store_async(self, record: Optional[Record]) -> None:
        """Records what was worked out, without blocking the event loop."""
        if record is not None:
            await store_async(self._recorder, record)


class _Ending:
    """Counts one call when it is over, and lets everything through."""

    def __init__(self, metered: Metered, call: MeteredCall) -> None:
        self._metered = metered
        self._call = call

    def __enter__(self) -> MeteredCall:
        return self._call

    def __exit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> None:
        self._call.end(error)
        self._metered.store(self._metered.record_of(self._call))

    async def __aenter__(self) -> MeteredCall:
        return self._call

    async def __aexit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> None:
        self._call.end(error)
        await self._metered.store_async(self._metered.record_of(self._call))


class Meter:
    """A block of code that is counted when it ends: what `X402Client.meter` returns.

    The block may change what is recorded while it runs.

    Attributes:
        envelope_id: the envelope that pays; None leaves the block uncounted.
        amount: units of usage.
        metadata: a dict, or None.
        idempotency_key: the key under which the block is booked once, or None for one of its own.
        failures: 1 when the block was to be counted and could not be.
    """

    def __init__(
        self,
        client: X402Client,
        envelope_id: Optional[str],
        amount: int,
        metadata: Optional[Dict[str, Any]],
        idempotency_key: Optional[str],
        count_errors: bool,
    ) -> None:
        if envelope_id is not None:
            check_recordable(envelope_id, amount, metadata)
        self.envelope_id = envelope_id
        self.amount = amount
        self.metadata: Optional[Dict[str, Any]] = None if metadata is None else dict(metadata)
        self.idempotency_key = idempotency_key
        self._count_errors = count_errors
        self._recorder = Recorder(
            client,
            lambda: self.envelope_id,
            lambda: self.amount,
            lambda: self.metadata,
            lambda: self.idempotency_key,
        )

    @property
    def failures(self) -> int:
        return self._recorder.failures

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> None:
        record = self._record(error)
        if record is not None:
            self._recorder.store(record)

    async def __aenter__(self) -> Meter:
        return self

    async def __aexit__(self, kind: Any, error: Optional[BaseException], traceback: Any) -> None:
        record = self._record(error)
        if record is not None:
            await store_async(self._recorder, record)

    def _record(self, error: Optional[BaseException]) -> Optional[Record]:
        return None if error is not None and not self._count_errors else self._recorder.work_out()


async def store_async(recorder: Recorder, record: Record) -> None:
    """Records on an event loop: at once through a buffer, in a thread where the buffer waits for its disk, and by an
    awaited call without a buffer."""
    client = recorder.client
    if is_plain(client):
        try:
            await client.aio.record_usage(*record[:3], idempotency_key=record.idempotency_key)
        except Exception as error:  # noqa: BLE001 - no answer, a refusal, a missing extra: not the caller's business
            recorder.failed("recording", error)
    elif may_wait(client):
        await asyncio.get_running_loop().run_in_executor(None, recorder.store, record)
    else:
        recorder.store(record)
