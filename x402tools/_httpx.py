"""One request, one answer or one error, awaited; the only door to httpx.

It keeps what `_http` keeps: no redirect is followed, no cookie kept, no body read that is too large or too late, and
the key is in no exception. Proxies, certificates and headers are those of the client's `requests.Session`, asked there
and not worked out a second time.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import os
import ssl
import time
import zlib
from typing import Any, AsyncGenerator, Awaitable, Callable, Dict, Iterator, Optional, Tuple
from urllib.parse import urlencode

import anyio
import httpx

from x402tools import _process
from x402tools._http import Route, Transport
from x402tools._reply import JSON_HEADERS, Body, Pace, Reply, Timeouts, Translated, redirect_refused
from x402tools.errors import APIConnectionError, APITimeoutError

# Requests under way at the same time on one event loop; more wait. httpx looks at each of its connections again and
# again: with 64 of them a request costs three times as much CPU as with 16, and keeps the loop for milliseconds.
_MOST_AT_ONCE = 16

# Bytes unpacked at a time: a compressed piece of a body may hold a thousand times as much.
_PIECE = 64 * 1024

# Headers that are for the library that sends: the session's are those of requests.
_OF_THE_LIBRARY = ("accept", "accept-encoding", "connection")


class AsyncTransport:
    """Sends requests where a `Transport` sends them. Serves many event loops, each over connections of its own.

    Args:
        transport: has the base URL and knows the way.
        authorization: gives the value of that header, with the key as it is now.
        timeouts: as for the transport.
    """

    def __init__(self, transport: Transport, authorization: Callable[[], Awaitable[str]], timeouts: Timeouts) -> None:
        self._transport = transport
        self._authorization = authorization
        self._timeouts = timeouts
        self._by_loop: Dict[asyncio.AbstractEventLoop, _Connections] = {}
        self._through_proxy = False
        _process.forget_after_fork(self)

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: Optional[bytes] = None,
        headers: Optional[Dict[str, str]] = None,
        deadline: float,
    ) -> Reply:
        """One attempt; see `Transport.send`."""
        with Translated(self._translate):
            connections = await self._connections()
            async with connections.room:
                response = await self._open(connections.client, method, path, body, headers, deadline)
                try:
                    return await _whole(response, deadline)
                finally:
                    await response.aclose()

    async def stream(
        self, path: str, *, query: Optional[Dict[str, str]] = None, deadline: float
    ) -> Tuple[Reply, AsyncGenerator[bytes, None]]:
        """Like `send` for a GET, but a 2xx answer comes as pieces of its body; see `Transport.stream`."""
        with Translated(self._translate):
            connections = await self._connections()
            target = f"{path}?{urlencode(query)}" if query else path
            async with connections.room:
                response = await self._open(connections.client, "GET", target, None, None, deadline)
                if 200 <= response.status_code < 300:
                    return Reply(response.status_code, response.headers, b""), self._pieces(response)
                try:
                    return await _whole(response, deadline), _no_pieces()
                finally:
                    await response.aclose()

    async def close(self) -> None:
        """Closes the connections of this event loop. New ones are opened when they are needed."""
        connections = self._by_loop.pop(asyncio.get_running_loop(), None)
        if connections is not None:
            await connections.client.aclose()

    def forget(self) -> None:
        """In a forked child: it has an event loop of its own, and must not touch the parent's connections."""
        self._by_loop = {}

    async def _open(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        body: Optional[bytes],
        headers: Optional[Dict[str, str]],
        deadline: float,
    ) -> httpx.Response:
        left = max(deadline - time.monotonic(), 0.001)
        connect, read = min(self._timeouts.connect, left), min(self._timeouts.read, left)
        request = client.build_request(
            method,
            self._transport.base_url + path,
            content=body,
            headers={**JSON_HEADERS, **(headers or {}), "Authorization": await self._authorization()},
            timeout=httpx.Timeout(connect=connect, read=read, write=read, pool=connect),
        )
        with anyio.fail_after(left) as limit:

            async def trace(event: str, _: Any) -> None:
                # The library bounds each read. This bounds the head as a whole, which may come a byte at a time.
                if event.endswith(".receive_response_headers.started"):
                    limit.deadline = min(limit.deadline, anyio.current_time() + read)

            request.extensions["trace"] = trace
            return await client.send(request, stream=True)

    async def _pieces(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        with Translated(self._translate):
            try:
                pace = Pace(self._timeouts.total)
                async for piece in _read(response):
                    pace.keep(piece)
                    yield piece
            finally:
                await response.aclose()

    async def _connections(self) -> _Connections:
        loop = asyncio.get_running_loop()
        base_url = self._transport.base_url
        found = self._by_loop.get(loop)
        if found is not None and found.base_url == base_url:
            return found
        # In a thread: reading the certificates takes tens of milliseconds.
        route, client = await loop.run_in_executor(None, _new_client, self._transport)
        self._through_proxy = route.proxy is not None
        for other in [other for other in self._by_loop if other.is_closed()]:
            del self._by_loop[other]
        found = self._by_loop.get(loop)  # another task may have been as quick
        if found is None or found.base_url != base_url:
            found = self._by_loop[loop] = _Connections(base_url, client)
        return found

    def _translate(self, error: Exception) -> APIConnectionError:
        return _translate(error, self._through_proxy)


class _Connections:
    """Of one event loop to one base URL."""

    def __init__(self, base_url: str, client: httpx.AsyncClient) -> None:
        self.base_url = base_url
        self.client = client
        self.room = asyncio.Semaphore(_MOST_AT_ONCE)


def _new_client(transport: Transport) -> Tuple[Route, httpx.AsyncClient]:
    route = transport.route()
    headers = {name: value for name, value in route.headers.items() if name.lower() not in _OF_THE_LIBRARY}
    if headers.get("User-Agent", "").startswith("python-requests"):
        del headers["User-Agent"]
    return route, httpx.AsyncClient(
        verify=_tls(route),
        proxy=route.proxy,
        headers={**headers, "Accept-Encoding": "gzip"},
        cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=_MOST_AT_ONCE),
        follow_redirects=False,
        event_hooks={"response": [_refuse_redirect]},  # before the library looks at where it leads
        trust_env=False,
    )


def _tls(route: Route) -> ssl.SSLContext:
    if route.bundle is None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif os.path.isdir(route.bundle):
        context = ssl.create_default_context(capath=route.bundle)
    else:
        context = ssl.create_default_context(cafile=route.bundle)
    if route.certificate is not None:
        files = (route.certificate,) if isinstance(route.certificate, str) else route.certificate
        context.load_cert_chain(*files)
    return context


async def _refuse_redirect(response: httpx.Response) -> None:
    if 300 <= response.status_code < 400:
        raise redirect_refused(response.status_code, response.headers)


async def _whole(response: httpx.Response, deadline: float) -> Reply:
    """The answer with its body, which has to be small and in time."""
    body = Body(response.status_code, deadline)
    with anyio.fail_after(max(deadline - time.monotonic(), 0.001)):
        async for piece in _read(response):
            if body.is_enough(piece):
                break
    return Reply(response.status_code, response.headers, body.bytes())


async def _no_pieces() -> AsyncGenerator[bytes, None]:
    nothing: Tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece


async def _read(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it arrives, unpacked in pieces of bounded size; httpx itself unpacks all that has come at once."""
    unpack = _Unpacker(response.headers.get("Content-Encoding", ""))
    async for arrived in response.aiter_raw():
        for piece in unpack.pieces(arrived):
            yield piece
    rest = unpack.rest()
    if rest:
        yield rest


class _Unpacker:
    """Undoes the compression of a body."""

    def __init__(self, encoding: str) -> None:
        packed = encoding.strip().lower() in ("gzip", "x-gzip", "deflate")
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS + 32) if packed else None  # + 32: of either of the two

    def pieces(self, arrived: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            yield arrived
            return
        while arrived:
            yield self._inflate.decompress(arrived, _PIECE)
            arrived = self._inflate.unconsumed_tail

    def rest(self) -> bytes:
        return b"" if self._inflate is None else self._inflate.flush()


def _translate(error: Exception, through_proxy: bool) -> APIConnectionError:
    chain = list(_chain(error))
    what = f"{type(error).__name__}: {_said_by(chain[-1])}"[:300]
    if isinstance(error, (httpx.ConnectTimeout, httpx.PoolTimeout)):
        return APITimeoutError(f"no connection in time ({type(error).__name__})", maybe_processed=False)
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return APITimeoutError(f"no answer in time ({type(error).__name__})")
    ended = any(isinstance(one, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) for one in chain)
    if any(isinstance(one, ssl.SSLError) for one in chain) and not ended:
        return APIConnectionError(f"TLS failed ({what})", retryable=False, maybe_processed=False)
    if isinstance(error, httpx.ProxyError) or (through_proxy and isinstance(error, httpx.ConnectError)):
        return APIConnectionError(f"the proxy failed ({what})", maybe_processed=False)
    if isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL)):
        # Not its text: the library says what it cannot send.
        kind = type(error).__name__
        return APIConnectionError(f"the request cannot be sent ({kind})", retryable=False, maybe_processed=False)
    if isinstance(error, (httpx.HTTPError, zlib.error, OSError)):
        refused = isinstance(error, httpx.ConnectError)
        return APIConnectionError(f"no whole answer ({what})", maybe_processed=not refused)
    return APIConnectionError(f"the request failed ({type(error).__name__})", retryable=False)


def _said_by(error: BaseException) -> str:
    """asyncio words errors of the operating system anew, and leaves the reason out."""
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.errno:
        return f"[Errno {error.errno}] {os.strerror(error.errno)}"
    return str(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that caused it, outermost first."""
    inner: Any = error
    for _ in range(8):
        if inner is None:
            return
        yield inner
        inner = inner.__cause__ or inner.__context__
