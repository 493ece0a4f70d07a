"""`@client.metered` and `with client.meter`: what is counted, what is not, and that nothing of it fails the caller."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any, AsyncIterator, Iterator, List

import pytest

from tests.metering.conftest import Bill
from x402tools import ValidationError, X402Client
from x402tools.testing import Emulator


def test_each_call_of_a_function_is_recorded(client: X402Client, envelope_id: str, bill: Bill) -> None:
    """With values; the function returns what it returned, and looks like itself."""

    @client.metered(envelope_id, amount=3, metadata={"kind": "render"})
    def render(page: int) -> str:
        """Renders a page."""
        return f"page {page}"

    assert [render(1), render(page=2)] == ["page 1", "page 2"]
    assert (render.__name__, render.__doc__) == ("render", "Renders a page.")
    assert [(event.amount, event.metadata) for event in bill()] == [(3, {"kind": "render"})] * 2


def test_arguments_may_be_functions_of_the_call(client: X402Client, emulator: Emulator, bill: Bill) -> None:
    """They see the arguments, the result and the time, and choose the envelope and the key."""
    envelopes = {"a": emulator.create_envelope(), "b": emulator.create_envelope()}

    @client.metered(
        lambda call: envelopes.get(call.args[0]),
        amount=lambda call: len(call.result),
        metadata=lambda call: {"quick": call.seconds < 10, "size": call.kwargs["size"]},
        idempotency_key=lambda call: f"key-{call.args[0]}",
    )
    def answer(customer: str, *, size: int) -> List[int]:
        return [0] * size

    answer("a", size=2)
    answer("b", size=5)
    answer("b", size=5)  # the same key: booked once
    answer("nobody", size=9)  # no envelope: not counted

    booked = {(event.envelope_id, event.amount, event.idempotency_key) for event in bill()}
    assert booked == {(envelopes["a"], 2, "key-a"), (envelopes["b"], 5, "key-b")}
    assert len(emulator.events()) == 2


@pytest.mark.parametrize(("count_errors", "recorded"), [(False, 0), (True, 1)])
def test_exceptions_pass_through(
    client: X402Client, envelope_id: str, bill: Bill, count_errors: bool, recorded: int
) -> None:
    """The caller gets the function's own exception; the call counts only on request."""

    @client.metered(envelope_id, metadata=lambda call: {"error": repr(call.error)}, count_errors=count_errors)
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()

    assert [event.metadata for event in bill()] == [{"error": "KeyError('x')"}] * recorded


def test_generator_counts_when_it_is_over(client: X402Client, envelope_id: str, bill: Bill) -> None:
    """Finished or closed by its consumer, once each; what is sent in arrives, and what it returns comes out."""

    @client.metered(envelope_id)
    def echo() -> Iterator[Any]:
        got = yield "first"
        while got != "stop":
            got = yield got
        return "done"

    finished, closed, untouched = echo(), echo(), echo()
    assert next(finished) == next(closed) == "first"
    assert finished.send(5) == 5  # type: ignore[attr-defined]  # a generator, behind the name of an iterator
    assert bill() == []
    with pytest.raises(StopIteration, match="done"):
        finished.send("stop")
    closed.close()
    untouched.close()

    assert len(bill()) == 2


def test_coroutine_counts_when_it_is_over(client: X402Client, envelope_id: str, bill: Bill) -> None:
    """And not when it is cancelled."""

    @client.metered(envelope_id, amount=lambda call: call.result)
    async def double(number: int) -> int:
        if number < 0:
            await asyncio.Event().wait()
        return 2 * number

    async def main() -> Any:
        waiting = asyncio.ensure_future(double(-1))
        await asyncio.sleep(0)
        waiting.cancel()
        return await asyncio.gather(double(1), double(2), waiting, return_exceptions=True)

    results = asyncio.run(main())

    assert inspect.iscoroutinefunction(double)
    assert results[:2] == [2, 4]
    assert isinstance(results[2], asyncio.CancelledError)
    assert sorted(event.amount for event in bill()) == [2, 4]


def test_async_generator_counts_when_it_is_over(client: X402Client, envelope_id: str, bill: Bill) -> None:
    """Finished or closed by its consumer; what is sent or thrown in arrives; one that raises does not count."""
    log: List[str] = []

    @client.metered(envelope_id)
    async def echo(fails: bool = False) -> AsyncIterator[Any]:
        try:
            got = yield "first"
            while got != "stop":
                try:
                    got = yield got
                except LookupError as error:
                    got = yield f"caught {error!r}"
            if fails:
                raise OSError("of the function")
        finally:
            log.append("cleaned up")

    async def main() -> None:
        finished: Any = echo()
        assert await finished.__anext__() == "first"
        assert await finished.asend(5) == 5
        assert await finished.athrow(LookupError("y")) == "caught LookupError('y')"
        with pytest.raises(StopAsyncIteration):
            await finished.asend("stop")
        closed: Any = echo()
        assert [await closed.__anext__(), await closed.aclose()] == ["first", None]
        failing: Any = echo(True)
        await failing.__anext__()
        with pytest.raises(OSError, match="of the function"):
            await failing.asend("stop")

    asyncio.run(main())

    assert inspect.isasyncgenfunction(echo)
    assert log == ["cleaned up"] * 3
    assert len(bill()) == 2


def test_block_says_what_it_used(client: X402Client, envelope_id: str, bill: Bill) -> None:
    """While it runs, in both kinds of `with`; one that raises does not count, unless asked for."""

    async def awaited() -> None:
        async with client.meter(envelope_id, metadata={"kind": "async"}) as usage:
            usage.amount = 7

    with client.meter(envelope_id) as usage:
        usage.amount += 4
        usage.metadata = {"kind": "sync"}
    asyncio.run(awaited())
    with client.meter(envelope_id) as usage:
        usage.envelope_id = None
    with pytest.raises(KeyError), client.meter(envelope_id):
        raise KeyError
    with pytest.raises(KeyError), client.meter(envelope_id, 9, count_errors=True, idempotency_key="k-9"):
        raise KeyError

    booked = {event.amount: event for event in bill()}
    assert {amount: event.metadata for amount, event in booked.items()} == {
        5: {"kind": "sync"},
        7: {"kind": "async"},
        9: None,
    }
    assert booked[9].idempotency_key == "k-9"


def test_what_a_function_raises_costs_one_record_only(
    client: X402Client, envelope_id: str, bill: Bill, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller notices nothing; every loss is counted, and one of each kind is logged."""
    amounts: List[Any] = [LookupError("a"), LookupError("b"), 1.5, -1, 2]

    def amount(_: Any) -> Any:
        found = amounts.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    meter = client.metered(envelope_id, amount=amount)
    function = meter(lambda: "result")

    with caplog.at_level(logging.WARNING, "x402tools"):
        assert [function() for _ in range(5)] == ["result"] * 5

    assert [event.amount for event in bill()] == [2]
    assert meter.failures == 4
    assert [record.message.split(": ")[1] for record in caplog.records] == [
        "the amount function raised LookupError",
        "recording raised ValidationError",
    ]


def test_closed_client_does_not_fail_a_function(client: X402Client, envelope_id: str) -> None:
    """A request that is served while the service goes down is still served."""
    meter = client.metered(envelope_id)
    function = meter(lambda: "result")
    client.close()

    assert function() == "result"
    assert meter.failures == 1


def test_values_are_checked_at_once(client: X402Client, envelope_id: str) -> None:
    """A value that could never be recorded is the programmer's mistake, told where it was made."""
    with pytest.raises(ValidationError, match="envelope_id"):
        client.metered("")
    with pytest.raises(ValidationError, match="amount"):
        client.metered(envelope_id, amount=-1)
    with pytest.raises(ValidationError, match="metadata"):
        client.meter(envelope_id, metadata={"x": object()})
    with pytest.raises(ValidationError, match="idempotency_key"):
        client.metered(envelope_id, idempotency_key="one for all")  # type: ignore[arg-type]  # the mistake itself

    async def amount(_: Any) -> int:
        return 1

    with pytest.raises(ValidationError, match="plain function"):
        client.metered(envelope_id, amount=amount)  # type: ignore[arg-type]  # the mistake itself


def test_plain_client_waits_for_the_answer(plain_client: X402Client, envelope_id: str, emulator: Emulator) -> None:
    """In a script without a buffer the usage is booked when the function returns; a refusal does not fail it."""
    meter = plain_client.metered(lambda call: call.args[0])
    function = meter(lambda _: "result")

    assert function(envelope_id) == "result"
    assert emulator.ledger().events == 1
    assert function("env_none") == "result"
    assert meter.failures == 1
