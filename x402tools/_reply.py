"""One answer, or one error, as every way of sending gives it; and the limits that hold for every way."""

from __future__ import annotations

import time
from typing import Any, Callable, List, Mapping, NamedTuple
from urllib.parse import urlsplit

from x402tools.errors import APIError, APITimeoutError, X402Error

# No single answer of this API comes near it; lists are read as a stream and are not limited by it.
LARGEST_ANSWER = 1024 * 1024  # bytes, after decompression

# A list may take longer than `total`, but each mebibyte of it must arrive within `total`.
_STREAM_STRIDE = 1024 * 1024

JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class Timeouts(NamedTuple):
    """Seconds: to connect; for the head of an answer, and between two pieces of its body; for a call with retries."""

    connect: float
    read: float
    total: float


class Reply(NamedTuple):
    """A whole answer; the names of headers are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Body:
    """The body of one answer, which has to be small and in time; `deadline` is a moment of `time.monotonic()`."""

    def __init__(self, status: int, deadline: float) -> None:
        self._status = status
        self._deadline = deadline
        self._pieces: List[bytes] = []
        self._size = 0

    def is_enough(self, piece: bytes) -> bool:
        """Takes one more piece. True when nobody wants the rest.

        Raises:
            APIError: a success is too large.
            APITimeoutError: it is too late.
        """
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > LARGEST_ANSWER:
            if self._status >= 400:  # the status says all; what follows is a page for people
                return True
            raise APIError(f"the answer is larger than {LARGEST_ANSWER} bytes", self._status)
        if time.monotonic() > self._deadline:
            raise APITimeoutError("the answer did not end in time")
        return False

    def bytes(self) -> bytes:
        """All that was taken."""
        return b"".join(self._pieces)


class Pace:
    """How slowly a list may come: each mebibyte within so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._received = 0
        self._due = time.monotonic() + seconds

    def keep(self, piece: bytes) -> None:
        """A piece has come.

        Raises:
            APITimeoutError: too late.
        """
        self._received += len(piece)
        now = time.monotonic()
        if now > self._due:
            raise APITimeoutError(f"the answer came too slowly: {self._received} bytes before the deadline")
        if self._received >= _STREAM_STRIDE:
            self._received, self._due = 0, now + self._seconds


def redirect_refused(status: int, headers: Mapping[str, str]) -> APIError:
    """The error for a redirect, which nobody follows."""
    return APIError(
        f"the service answered with a redirect ({status}) to {_where(headers.get('Location', ''))}; "
        "redirects are not followed, check base_url",
        status,
    )


def _where(location: str) -> str:
    """Scheme and host of a redirect: its path and query may hold what is not for a log."""
    try:
        target = urlsplit(location)
        if target.scheme and target.hostname:
            return f"{target.scheme}://{target.hostname}"[:200]
    except ValueError:
        return "something that is not a URL"
    return "itself" if location else "nowhere"


class Translated:
    """Turns what is raised below into our errors, without the chain: what it holds leads to the request and its key.

    Args:
        translate: makes our error of one of a library.
    """

    def __init__(self, translate: Callable[[Exception], X402Error]) -> None:
        self._translate = translate

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, X402Error):
            return
        ours = self._translate(error)
        try:
            raise ours from None
        finally:
            ours.__context__ = None  # `from None` hides it from a traceback, and keeps it
