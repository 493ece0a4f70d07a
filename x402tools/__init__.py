"""SDK of the x402 Usage-Based Billing API, with a durable, buffered usage reporter.

The journey of one event, and the file of each step:

    record       checked and given its id, the later idempotency key                 client, buffer, _event
    intake       in memory, between the callers and the writer thread                _intake, _journal
    spool        many at a time, committed and synced as one batch                   _writer, _batch, _reserve, _spool
    sealed       a frozen POST: neither its amount nor its key ever changes again    _store (the states and their moves)
    delivered    sent until the service has it, then struck off             _flusher, _senders, _verdict, _gate, _http
    or dead      refused for good: set aside with the reason, until requeued         _spool, UsageBuffer.requeue
    or held      of unknown outcome, where it may not just be sent again             _doubts, _reconcile
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

if TYPE_CHECKING:
    from x402tools._budget import Budget, BudgetWatch
    from x402tools.buffer import BufferStats, DeadLetter, FlushResult, Health, Reconciliation, UsageBuffer
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
    from x402tools.redis_store import RedisStore

__version__ = "2.0.0"

__all__ = [
    "APIConnectionError",
    "APIError",
    "APITimeoutError",
    "ApiKey",
    "AuthenticationError",
    "Budget",
    "BudgetWatch",
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
    "RedisStore",
    "SpoolError",
    "Usage",
    "UsageBuffer",
    "UsageLimitExceededError",
    "UsageStats",
    "ValidationError",
    "X402Client",
    "X402Error",
]

# Where each name lives; a file is imported when a name of it is first asked for. So a script that only calls the API
# does not pay for SQLite, and what needs no client (the emulator's process, pytest before any test) not for requests.
_HOMES: Dict[str, Tuple[str, ...]] = {
    "_budget": ("Budget", "BudgetWatch"),
    "buffer": ("BufferStats", "DeadLetter", "FlushResult", "Health", "Reconciliation", "UsageBuffer"),
    "client": ("X402Client",),
    "models": ("ApiKey", "Envelope", "PeriodType", "Usage", "UsageStats"),
    "redis_store": ("RedisStore",),
    "errors": (
        "APIConnectionError",
        "APIError",
        "APITimeoutError",
        "AuthenticationError",
        "BufferClosedError",
        "EnvelopeNotFoundError",
        "MissingExtraError",
        "NotFoundError",
        "QueueFullError",
        "RateLimitError",
        "SpoolError",
        "UsageLimitExceededError",
        "ValidationError",
        "X402Error",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # `x402tools.errors`, after no more than `import x402tools`
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)  # not asked again
    return found


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
