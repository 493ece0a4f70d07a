"""Every exception of this package.

X402Error
├── APIError                      the service answered with an error, or its answer made no sense
│   ├── AuthenticationError       401, 403: the key is wrong or lacks a right
│   ├── ValidationError           400, 422, or an argument refused here before anything was sent or stored
│   ├── UsageLimitExceededError   402, or an error that says that the envelope's limit is exceeded
│   ├── NotFoundError             404
│   │   └── EnvelopeNotFoundError 404 on an envelope, or on the envelope a usage record names
│   ├── RateLimitError            429
│   └── APIConnectionError        no answer: name look-up, refused, reset, TLS
│       └── APITimeoutError       no answer in time
├── QueueFullError                the buffer is full and was told to raise
├── BufferClosedError             recorded after close()
├── SpoolError                    the spool file cannot be used
└── MissingExtraError             an optional dependency is not installed

Which status becomes which class is `error_for_status`, from the table in the wire contract of the API.
Whether the same request may succeed when it is tried again is `X402Error.retryable`: asked in one place
for the synchronous client (`_retry`) and in one for the buffer (`_verdict`).
"""

from __future__ import annotations

import re
from typing import Any, Dict, Optional, Type

__all__ = [
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
]

# What an answer may add to an error message or keep on it, in characters: enough to read, too little to flood a log.
EXCERPT_LENGTH = 1000

_LIMIT_EXCEEDED = r"(?i)(?<!rate )limit\b.{0,40}\bexceed|exceed\w*\b.{0,40}(?<!rate )\blimit\b"


class X402Error(Exception):
    """Base of every error this package raises on purpose."""

    @property
    def retryable(self) -> bool:
        """True when the same request may succeed later without anybody changing anything."""
        return False


class APIError(X402Error):
    """The service answered with an error, or with something that is not the JSON it promises.

    Attributes:
        status_code: the HTTP status, or None when there was no answer or the request was never sent.
        response: the JSON object of the answer; an empty dict when there was none.
        request_id: what the service or its proxy calls this request, for support; None when it said nothing.
        retry_after: seconds the service asked to wait (`Retry-After`, both forms), or None.
        body: the first 1,000 characters of an answer that was not a JSON object, or None.
    """

    def __init__(
        self,
        message: str,
        status_code: Optional[int] = None,
        response: Optional[Dict[str, Any]] = None,
        *,
        request_id: Optional[str] = None,
        retry_after: Optional[float] = None,
        body: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.response: Dict[str, Any] = response if response is not None else {}
        self.request_id = request_id
        self.retry_after = retry_after
        self.body = body

    @property
    def retryable(self) -> bool:
        return self.status_code is not None and (self.status_code in (408, 429) or self.status_code >= 500)


class AuthenticationError(APIError):
    """401 or 403: the API key is missing, wrong, revoked, or not allowed to do this."""


class ValidationError(APIError, ValueError):
    """An argument is not usable: refused by the service (400, 422), or here before anything was sent or stored.

    Refused here, `status_code` is None and the message names the argument and what would be right.
    """


class UsageLimitExceededError(APIError):
    """402, or another 4xx whose message says that the envelope's limit is exceeded: the usage was not booked."""


class NotFoundError(APIError):
    """404 on something other than an envelope, an API key for example."""


class EnvelopeNotFoundError(NotFoundError):
    """404 on an envelope, or on a usage record that names an envelope the service does not know."""


class RateLimitError(APIError):
    """429: too many requests; `retry_after` has the seconds to wait when the service named them."""


class APIConnectionError(APIError):
    """No answer came: name look-up, connection refused or reset, TLS. The outcome of a POST is unknown.

    Attributes:
        maybe_processed: False when the request certainly never reached the service.
    """

    def __init__(self, message: str, *, retryable: bool = True, maybe_processed: bool = True) -> None:
        super().__init__(message)
        self._retryable = retryable
        self.maybe_processed = maybe_processed

    @property
    def retryable(self) -> bool:
        return self._retryable


class APITimeoutError(APIConnectionError):
    """No answer came in time. The outcome of a POST is unknown."""


class QueueFullError(X402Error):
    """The buffer is at its limit and `on_queue_full="raise"`: this event was not stored."""


class BufferClosedError(X402Error):
    """Recorded after `close()`: this event was not stored."""


class SpoolError(X402Error):
    """The spool file cannot be opened or used; the message names the path and what to do."""


class MissingExtraError(X402Error, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f'{feature} needs packages that are not installed: pip install "x402tools[{extra}]"')


def error_for_status(status: int, message: str, *, envelope: bool) -> Type[APIError]:
    """The class for an HTTP status.

    Args:
        status: the HTTP status of the answer, 300 or more.
        message: what the service said; only read to tell an exceeded usage limit from other refusals.
        envelope: True when the request named an envelope, so that a 404 is about it.
    """
    speaks_of_another_limit = status in (401, 408, 413, 429) or not 400 <= status < 500
    if status == 402 or (not speaks_of_another_limit and re.search(_LIMIT_EXCEEDED, message)):
        return UsageLimitExceededError
    if status in (401, 403):
        return AuthenticationError
    if status == 404:
        return EnvelopeNotFoundError if envelope else NotFoundError
    return {400: ValidationError, 422: ValidationError, 429: RateLimitError}.get(status, APIError)
