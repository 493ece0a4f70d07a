"""SDK of the x402 Usage-Based Billing API, with a durable, buffered usage reporter.

The journey of one event, and the file of each step:

    record       checked and given its id, the later idempotency key                 client, buffer, _event
    intake       in memory, between the callers and the writer thread                _intake
    spool        many at a time, committed and synced as one batch                   _writer, _batch, _reserve, _spool
    sealed       a frozen POST: neither its amount nor its key ever changes again    _store (the states and their moves)
    delivered    sent until the service has it, then struck off                      _flusher, _verdict, _gate, _http
    or dead      refused for good: set aside with the reason, until requeued         _spool, UsageBuffer.requeue
    or held      of unknown outcome, where it may not just be sent again             _doubts, _reconcile
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List

from x402tools.client import X402Client
from x402tools.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    BufferClosedError,
    EnvelopeNotFoundError,
    MissingExtraError,
    NotFoundError,
    QueueFullError,
    RateLimitError,
    SpoolError,
    UsageLimitExceededError,
    ValidationError,
    X402Error,
)
from x402tools.models import ApiKey, Envelope, PeriodType, Usage, UsageStats

if TYPE_CHECKING:
    from x402tools.buffer import BufferStats, DeadLetter, FlushResult, Health, Reconciliation, UsageBuffer

__version__ = "2.0.0"

__all__ = [
    "APIConnectionError",
    "APIError",
    "APITimeoutError",
    "ApiKey",
    "AuthenticationError",
    "BufferClosedError",
    "BufferStats",
    "DeadLetter",
    "Envelope",
    "EnvelopeNotFoundError",
    "FlushResult",
    "Health",
    "MissingExtraError",
    "NotFoundError",
    "PeriodType",
    "QueueFullError",
    "RateLimitError",
    "Reconciliation",
    "SpoolError",
    "Usage",
    "UsageBuffer",
    "UsageLimitExceededError",
    "UsageStats",
    "ValidationError",
    "X402Client",
    "X402Error",
]

# SQLite and threads come in with the buffer; a script that only calls the API does not pay for importing them.
_IN_BUFFER = ("BufferStats", "DeadLetter", "FlushResult", "Health", "Reconciliation", "UsageBuffer")


def __getattr__(name: str) -> Any:
    if name in _IN_BUFFER:
        from x402tools import buffer

        return getattr(buffer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
