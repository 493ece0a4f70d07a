"""One request, one answer or one error; with `_posting`, `_lean` and `_timely` the only door to requests.

What `requests` does by itself and this file does not let it do (each was measured): wait for ever, replace our bearer
by an entry of a netrc, follow a redirect (a 302 turns a lost POST into a success, a 307 hands the body to another
host), keep cookies, read a body of any size, and put the API key into the text or the frames of an exception.
"""

from __future__ import annotations

import http.cookiejar
import os
import socket
import ssl
import time
from contextlib import closing
from http.client import HTTPException, IncompleteRead
from typing import Any, Callable, Dict, Generator, Iterator, NamedTuple, Optional, Tuple, Union
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import DEFAULT_CA_BUNDLE_PATH, select_proxy
from urllib3.exceptions import ConnectTimeoutError, LocationValueError, NewConnectionError, ProxyError
from urllib3.exceptions import HTTPError as Urllib3Error
from urllib3.exceptions import SSLError as Urllib3SSLError
from urllib3.exceptions import TimeoutError as Urllib3Timeout

from x402tools import _process
from x402tools._posting import PostTemplate, resolved_settings
from x402tools._reply import JSON_HEADERS, Body, Pace, Reply, Timeouts, Translated, redirect_refused
from x402tools._timely import TimelyAdapter
from x402tools.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    ValidationError,
)

_PIECE = 64 * 1024  # bytes read at a time
_OLDER_PIECE = 4 * 1024  # and by urllib3 1.26, which unpacks a whole piece at once: up to a thousand times as much

_POOL_SIZE = 64  # connections kept open: as many as a buffer may have POSTs in flight
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Route(NamedTuple):
    """How to reach the service: the URL of a proxy, a file or folder of trusted certificates (None: trust anybody),
    a client's own certificate (a file, or one and the file of its key), and headers for every request."""

    proxy: Optional[str]
    bundle: Optional[str]
    certificate: Union[str, Tuple[str, str], None]
    headers: Dict[str, str]


def check_base_url(url: object, allow_http: bool) -> str:
    """The base URL without a trailing slash.

    Raises:
        ValidationError: not an https URL, or one with user information, a query or a fragment. http is accepted for
            this machine, and for others only when asked for, because the API key travels in a header.
    """
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValidationError("base_url must be a str like 'https://host.example', of visible ASCII characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:  # its text repeats what it takes for a port, which may be a part of a password
        raise ValidationError("base_url is not a URL: its host or its port is not one") from None
    if parts.scheme not in ("https", "http") or not host:
        raise ValidationError("base_url must begin with https:// and name a host")
    if parts.username is not None or parts.password is not None or "?" in url or "#" in url:
        raise ValidationError("base_url must not have user information, a query or a fragment")
    if parts.scheme == "http" and host not in _LOOPBACK and not allow_http:
        raise ValidationError("base_url must be https: over http the API key can be read by others (allow_http=True)")
    return url.rstrip("/")


def check_api_key(key: object) -> str:
    """A key that can stand in a header. The message never repeats it.

    Raises:
        ValidationError: not a str, empty, or with spaces, line ends or characters outside visible ASCII.
    """
    if not isinstance(key, str):
        raise ValidationError(f"api_key must be a str, not {type(key).__name__}")
    if not key:
        raise ValidationError("api_key must not be empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValidationError("api_key must be visible ASCII without spaces or line ends (read from a file? strip it)")
    return key


class Bearer(AuthBase):
    """Puts the key into a request. As an auth object it wins over a netrc, which a plain header does not."""

    def __init__(self, key: Callable[[], str]) -> None:
        self._key = key

    def header(self) -> str:
        """The value of `Authorization`, with the key as it is now.

        Raises:
            AuthenticationError: the callable that provides the key failed or gave something unusable.
        """
        try:
            return f"Bearer {check_api_key(self._key())}"
        except ValidationError as error:
            raise AuthenticationError(str(error)) from None
        except Exception as error:  # noqa: BLE001 - whatever the user's callable raises; its text may hold a secret
            raise AuthenticationError(f"the api_key callable raised {type(error).__name__}") from None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self.header()
        return request

    def __repr__(self) -> str:
        return "<Bearer ***>"

    def __reduce__(self) -> Any:
        raise TypeError("an API key is not pickled: make a client in each process")


def new_session(bearer: Bearer) -> requests.Session:
    """A session that keeps connections, keeps no cookies and authenticates with our bearer."""
    session = requests.Session()
    session.auth = bearer
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("https://", "http://"):
        session.mount(scheme, TimelyAdapter(pool_maxsize=_POOL_SIZE, max_retries=0))
    return session


class Transport:
    """Sends requests to one base URL. Serves many threads; a forked child gets connections of its own."""

    def __init__(self, base_url: str, bearer: Bearer, session: requests.Session, timeouts: Timeouts) -> None:
        self.session = session
        self.base_url = base_url
        self.bearer = bearer
        self._timeouts = timeouts
        self._post_template: Optional[PostTemplate] = None
        _process.forget_after_fork(self)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Optional[Dict[str, str]] = None,
        body: Optional[bytes] = None,
        headers: Optional[Dict[str, str]] = None,
        deadline: float,
    ) -> Reply:
        """One attempt; `deadline` is a moment of `time.monotonic()` after which the answer is given up.

        Raises:
            APIConnectionError, APITimeoutError: no whole answer.
            APIError: a redirect, or an answer larger than a mebibyte.
        """
        with _translated():
            response = self._open(method, path, query, body, headers, deadline)
            with closing(response):
                return _whole(response.raw, deadline)

    def stream(
        self, path: str, *, query: Optional[Dict[str, str]] = None, deadline: float
    ) -> Tuple[Reply, Generator[bytes, None, None]]:
        """Like `send` for a GET, but a 2xx answer comes as pieces of its body; close the iterator to stop early.

        The `Reply` has an empty body then; for any other status it has the body and there are no pieces.
        """
        with _translated():
            response = self._open("GET", path, query, None, None, deadline)
            if 200 <= response.status_code < 300:
                return Reply(response.status_code, response.headers, b""), self._pieces(response)
            with closing(response):
                return _whole(response.raw, deadline), _no_pieces()

    def post_usage(self, body: bytes, key: str) -> Reply:
        """One attempt at POST /usage, as `send` would do it, at a tenth of the cost; see `_posting` and `_lean`."""
        deadline = time.monotonic() + self._timeouts.connect + 2 * self._timeouts.read
        with _translated():
            template = self._post_template
            if template is None:
                limits = self._timeouts.connect, self._timeouts.read
                template = self._post_template = PostTemplate(self.session, self.base_url + "/usage", *limits)
            return template.post(
                body, self.bearer.header(), key, deadline=deadline, read=lambda raw: _reply_to_post(raw, deadline)
            )

    def route(self) -> Route:
        """The way to the service as the session and the environment have it, for another library to take.

        Raises:
            APIConnectionError: a bundle of certificates is not there, or the host cannot be one.
        """
        host = urlsplit(self.base_url).hostname or ""
        if any(not 0 < len(label) < 64 for label in host.split(".")):
            reason = "the request cannot be sent: base_url names a host that cannot be"
            raise APIConnectionError(reason, retryable=False, maybe_processed=False)
        with _translated():
            settings = resolved_settings(self.session, self.base_url)
            verify = settings["verify"]
            bundle = DEFAULT_CA_BUNDLE_PATH if verify is True else verify
            if bundle and not os.path.exists(bundle):
                raise APIConnectionError(f"there is no bundle of certificates at {bundle}", retryable=False)
            proxy = select_proxy(self.base_url, settings["proxies"])
            return Route(proxy, bundle or None, settings["cert"], _as_text(self.session.headers))

    def move(self, base_url: str) -> None:
        """Sends to another base URL from now on."""
        self.base_url = base_url
        self._post_template = None

    def close(self) -> None:
        """Closes the connections; the session can be used again and opens new ones."""
        template, self._post_template = self._post_template, None
        if template is not None:
            template.close()
        self.session.close()

    def forget(self) -> None:
        """In a forked child: new pools, because two processes on one connection would read each other's answers.

        The old pools are left alone: a lock in them may be held by a thread of the parent that is not here.
        """
        for adapter in self.session.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                pools = getattr(adapter, "_pool_connections", 10), getattr(adapter, "_pool_maxsize", _POOL_SIZE)
                adapter.init_poolmanager(*pools)
                adapter.proxy_manager = {}
        self._post_template = None

    def _open(
        self,
        method: str,
        path: str,
        query: Optional[Dict[str, str]],
        body: Optional[bytes],
        headers: Optional[Dict[str, str]],
        deadline: float,
    ) -> requests.Response:
        url = self.base_url + path
        request = self.session.prepare_request(
            requests.Request(
                method, url, params=query, data=body, headers={**JSON_HEADERS, **(headers or {})}, auth=self.bearer
            )
        )
        # As a hook, it comes before the session looks where a redirect leads: that reads a body of any size.
        request.hooks["response"].append(lambda response, **_: _refuse_redirect(response.raw))
        settings = resolved_settings(self.session, url)
        left = max(deadline - time.monotonic(), 0.001)
        return self.session.send(
            request,
            stream=True,
            allow_redirects=False,
            timeout=(min(self._timeouts.connect, left), min(self._timeouts.read, left)),
            **settings,
        )

    def _pieces(self, response: requests.Response) -> Generator[bytes, None, None]:
        with _translated(), closing(response):
            pace = Pace(self._timeouts.total)
            for piece in _read(response.raw):
                pace.keep(piece)
                yield piece


def _as_text(headers: Any) -> Dict[str, str]:
    return {name: value if isinstance(value, str) else value.decode("latin-1") for name, value in headers.items()}


def _refuse_redirect(raw: Any) -> None:
    if not 300 <= raw.status < 400:
        return
    raw.close()
    raise redirect_refused(raw.status, raw.headers)


def _whole(raw: Any, deadline: float) -> Reply:
    """The answer with its body, which has to be small and in time."""
    body = Body(raw.status, deadline)
    for piece in _read(raw):
        if body.is_enough(piece):
            break
    return Reply(raw.status, raw.headers, body.bytes())


def _reply_to_post(raw: Any, deadline: float) -> Reply:
    _refuse_redirect(raw)
    return _without_body(raw, deadline) if 200 <= raw.status < 300 else _whole(raw, deadline)


def _without_body(raw: Any, deadline: float) -> Reply:
    """A success whose body nobody wants: it is read so that the connection can be used again, whatever it is.

    The status says that the service has booked the usage. A body that is cut short must not have it sent again.
    """
    try:
        _whole(raw, deadline)
    except (APIError, Urllib3Error, OSError):
        raw.close()
    return Reply(raw.status, raw.headers, b"")


def _no_pieces() -> Generator[bytes, None, None]:
    yield from ()


def _read(raw: Any) -> Iterator[bytes]:
    """The body as it arrives. `read1` returns what is there, so that a slow drip meets the deadline between reads."""
    read1 = getattr(raw, "read1", None)
    if read1 is None:
        yield from _read_older(raw)
        return
    while True:
        piece = read1(_PIECE, decode_content=True)
        if not piece:
            return
        yield piece


def _read_older(raw: Any) -> Iterator[bytes]:
    """`_read` for urllib3 1.26. Its `read` waits until as much is there as was asked for, and misses a body cut short.

    What is used of its inner parts stays as it is: nothing but security fixes was ever to come after 1.26.
    """
    with raw._error_catcher():  # also gives the connection back at the end, or closes it when this is left early
        raw._init_decoder()
        left = getattr(raw._fp, "length", None)
        while left is None or left > 0:
            piece = raw._fp.read1(_OLDER_PIECE if left is None else min(_OLDER_PIECE, left))
            if not piece:
                break
            left = None if left is None else left - len(piece)  # not counted down by `read1` before Python 3.10
            yield raw._decode(piece, True, False)
        if left:
            raise IncompleteRead(b"", left)
        raw._fp.close()
    yield raw._decode(b"", True, True)


def _translated() -> Translated:
    return Translated(_translate)


# Raised before a connection is made, and again each time.
_UNSENDABLE = (
    LocationValueError,
    requests.exceptions.InvalidHeader,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
)


def _translate(error: Exception) -> APIConnectionError:
    """The errors come from requests, or from urllib3 where its pool was used; a user's adapter may raise anything."""
    if not isinstance(error, (requests.RequestException, Urllib3Error, HTTPException, OSError)):
        # Not its text: nobody knows what an adapter of the user's own puts there.
        return APIConnectionError(f"the request failed ({type(error).__name__})", retryable=False)
    what = f"{type(error).__name__}: {_innermost(error)}"[:300]
    if isinstance(error, (requests.ConnectTimeout, ConnectTimeoutError)) and not isinstance(error, NewConnectionError):
        return APITimeoutError(f"no connection in time ({what})", maybe_processed=False)
    if isinstance(error, (requests.Timeout, Urllib3Timeout, socket.timeout)) and not isinstance(
        error, NewConnectionError
    ):
        return APITimeoutError(f"no answer in time ({what})")
    # A connection that ends within the handshake is one that ended, as when a server restarts; TLS is not at fault.
    ended = any(isinstance(one, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) for one in _chain(error))
    if isinstance(error, (requests.exceptions.SSLError, Urllib3SSLError, ssl.SSLError)) and not ended:
        return APIConnectionError(f"TLS failed ({what})", retryable=False, maybe_processed=False)
    if isinstance(error, (requests.exceptions.ProxyError, ProxyError)):
        return APIConnectionError(f"the proxy failed ({what})", maybe_processed=False)
    if isinstance(error, _UNSENDABLE):
        return APIConnectionError(f"the request cannot be sent ({what})", retryable=False, maybe_processed=False)
    refused = any(isinstance(one, NewConnectionError) for one in _chain(error))
    return APIConnectionError(f"no whole answer ({what})", maybe_processed=not refused)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those it wraps, outermost first."""
    inner: Any = error
    for _ in range(6):
        if not isinstance(inner, BaseException):
            return
        yield inner
        inner = getattr(inner, "reason", None) or next((arg for arg in inner.args if isinstance(arg, Exception)), None)


def _innermost(error: BaseException) -> str:
    """The reason without its wrapping: 'Connection refused' rather than four exceptions inside each other."""
    return str(list(_chain(error))[-1])
