"""What a middleware is told: who records, and how requests are counted."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Union

from x402tools._metering import Record, Recorder, is_plain, may_wait
from x402tools.client import X402Client
from x402tools.errors import ValidationError


class Metering:
    """How requests are counted. Each function is called with the request and the response, after the answer.

    Args:
        client: an `X402Client` with a buffer.
        envelope_id: the envelope that pays, or a function; one that returns None leaves the request uncounted.
        amount: units of usage of one request, or a function.
        metadata: a dict, or a function that returns one or None.
        idempotency_key: a function that returns the key under which the request is booked once, however often a
            client repeats it; None gives it one of its own.
        count: a function that says whether a request counts. Default: see `x402tools.integrations`.
        allow_unbuffered: accept a client without a buffer, where that is possible at all: after each answer the
            worker waits for the service, and what the service does not take is lost.

    Raises:
        ValidationError: an argument is not usable, or the client has no buffer.
    """

    def __init__(
        self,
        client: X402Client,
        envelope_id: Union[str, Callable[[Any, Any], Optional[str]]],
        *,
        amount: Union[int, Callable[[Any, Any], int]] = 1,
        metadata: Union[Dict[str, Any], Callable[[Any, Any], Optional[Dict[str, Any]]], None] = None,
        idempotency_key: Optional[Callable[[Any, Any], Optional[str]]] = None,
        count: Optional[Callable[[Any, Any], bool]] = None,
        allow_unbuffered: bool = False,
    ) -> None:
        if is_plain(client) and not allow_unbuffered:
            raise ValidationError(
                "metering needs a client with a buffer, X402Client(..., buffer=UsageBuffer(...)): "
                "without one every request would wait for the billing service"
            )
        self.client = client
        self._has_rule = count is not None
        self._recorder = Recorder(client, envelope_id, amount, metadata, idempotency_key, count)

    @property
    def failures(self) -> int:
        """Requests that were to be counted in this process and could not be: a function raised, or recording did."""
        return self._recorder.failures

    def work_out(self, request: Any, response: Any, counts: bool) -> Optional[Record]:
        """What is to be recorded for a request, or None; `counts` is for when there is no `count` function."""
        return self._recorder.work_out(request, response) if self._has_rule or counts else None

    def store(self, record: Optional[Record]) -> None:
        """Records what was worked out. Does not raise."""
        if record is not None:
            self._recorder.store(record)

    def store_on_loop(self, record: Optional[Record]) -> None:
        """`store`, from an event loop: in a thread, and not waited for, where it might take longer than a moment."""
        if record is not None and may_wait(self.client):
            import asyncio  # not for those who have no event loop

            try:
                asyncio.get_running_loop().run_in_executor(None, self.store, record)
                return
            except RuntimeError:  # another kind of loop (trio), or one at its end: waiting is better than losing it
                pass
        self.store(record)
