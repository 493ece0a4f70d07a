"""Meters a Django site, under WSGI and ASGI. In the settings, the middleware first and then where its metering is:

    MIDDLEWARE = ["x402tools.integrations.django.MeteringMiddleware", ...]
    X402TOOLS_METERING = "mysite.billing.metering"

and in `mysite/billing.py` a `Metering`. Its functions are given Django's own request and response:

    client = X402Client(buffer=UsageBuffer("usage.db"))
    metering = Metering(client, lambda request, response: request.user.envelope_id, metadata=...)
"""

from __future__ import annotations

from typing import Any, AsyncIterator, Awaitable, Callable, Iterator, Union

from x402tools._metering import is_plain
from x402tools.errors import MissingExtraError, ValidationError
from x402tools.integrations._exchange import NO_ANSWER
from x402tools.integrations._meter import Metering

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.utils.module_loading import import_string
except ImportError:
    raise MissingExtraError("x402tools.integrations.django", "django") from None

__all__ = ["Metering", "MeteringMiddleware"]

SETTING = "X402TOOLS_METERING"

Request = Any
Response = Any


class MeteringMiddleware:
    """Counts each request when its response is closed, that is when the server is done with it. By default it counts
    when its status is below 500 and a streamed body has not failed.

    Raises:
        ImproperlyConfigured: the setting is missing, or names no `Metering`.
        ValidationError: under ASGI, the client has no buffer.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Request], Any]) -> None:
        self.get_response = get_response
        self.metering = configured_metering()
        self._is_async = bool(iscoroutinefunction(get_response))
        if self._is_async:
            markcoroutinefunction(self)
            if is_plain(self.metering.client):
                raise ValidationError("under ASGI metering needs a client with a buffer: buffer=UsageBuffer(...)")

    def __call__(self, request: Request) -> Union[Response, Awaitable[Response]]:
        if self._is_async:
            return self._call_async(request)
        return _watch(self.metering, request, self.get_response(request))

    async def _call_async(self, request: Request) -> Response:
        return _watch(self.metering, request, await self.get_response(request))


def configured_metering() -> Metering:
    """The `Metering` that the setting is, or names."""
    found = getattr(settings, SETTING, None)
    if isinstance(found, str):
        found = import_string(found)
    if not isinstance(found, Metering):
        raise ImproperlyConfigured(f"{SETTING} must name an x402tools.integrations.Metering, not {found!r}")
    return found


class _Ending:
    """Counts one request, once."""

    def __init__(self, metering: Metering, request: Request, response: Response) -> None:
        self._metering = metering
        self._request = request
        self._response = response
        self._has_ended = False
        self.has_failed = False

    def end(self, *, on_a_loop: bool) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        counts = self._response.status_code < NO_ANSWER and not self.has_failed
        record = self._metering.work_out(self._request, self._response, counts)
        if on_a_loop:
            self._metering.store_on_loop(record)
        else:
            self._metering.store(record)


def _watch(metering: Metering, request: Request, response: Response) -> Response:
    """Sees to it that the request is counted when the response is closed, or its stream broken off."""
    ending = _Ending(metering, request, response)
    close = response.close

    def closed() -> None:
        try:
            close()
        finally:
            ending.end(on_a_loop=False)  # Django closes in a thread, under ASGI too

    response.close = closed
    # A file that the server sends by itself must stay one.
    if response.streaming and getattr(response, "file_to_stream", None) is None:
        watched = _pieces_async if response.is_async else _pieces
        response.streaming_content = watched(response.streaming_content, ending)
    return response


def _pieces(pieces: Any, ending: _Ending) -> Iterator[bytes]:
    try:
        yield from pieces
    except Exception:
        ending.has_failed = True
        raise


async def _pieces_async(pieces: Any, ending: _Ending) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            yield piece
    except Exception:
        ending.has_failed = True
        raise
    finally:
        ending.end(on_a_loop=True)  # a response whose client has left is not always closed
