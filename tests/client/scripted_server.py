"""A server that answers request after request as its script says, for what the emulator is too polite to do.

>>> with ScriptedServer(reset(), answer(200, b"[]")) as server:                             # doctest: +SKIP
...     X402Client(KEY, server.url).get_envelopes()
...     assert [request.method for request in server.requests] == ["GET", "GET"]

It speaks bytes over real sockets and knows nothing of the API. A request beyond the end of the script is answered 418,
which no client tries again, and it is in `requests` like any other.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

HOST = "127.0.0.1"

# Seconds. What waits for the client gives up after it, so that a test that fails also ends.
LONGEST = 30.0

# SO_LINGER with a time of 0: close() sends RST, as a server does whose process died.
_RESET = struct.pack("ii", 1, 0)


class Request(NamedTuple):
    """A request as it came; the names of headers are in lower case."""

    method: str
    target: str
    headers: Dict[str, str]
    body: bytes
    client_port: int

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


class Exchange:
    """One request and the means to answer it; what a behaviour is handed."""

    def __init__(self, connection: socket.socket, request: Request, released: threading.Event) -> None:
        self.connection = connection
        self.request = request
        self.released = released

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)


# Answers one request; True when the connection may carry another one.
Behaviour = Callable[[Exchange], bool]


def head(status: int, headers: Dict[str, str]) -> bytes:
    """A status line and headers, up to and with the empty line."""
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer(status: int = 200, body: bytes = b"", headers: Optional[Dict[str, str]] = None) -> Behaviour:
    """A whole and honest answer; the connection stays open."""
    data = head(status, {"Content-Length": str(len(body)), **(headers or {})}) + body

    def behave(exchange: Exchange) -> bool:
        exchange.send(data)
        return True

    return behave


def says(document: Any, status: int = 200, headers: Optional[Dict[str, str]] = None) -> Behaviour:
    """An answer with this document as its JSON body."""
    content = {"Content-Type": "application/json", **(headers or {})}
    return answer(status, json.dumps(document).encode("utf-8"), content)


def refuses(status: int, message: str = "no", headers: Optional[Dict[str, str]] = None) -> Behaviour:
    """An error as the service words it: `{"error": message}`."""
    return says({"error": message}, status, headers)


def raw(data: bytes) -> Behaviour:
    """Exactly these bytes, and then the end of the connection."""

    def behave(exchange: Exchange) -> bool:
        exchange.send(data)
        return False

    return behave


def cut_short(document: Any, missing: int = 3) -> Behaviour:
    """An answer whose last bytes never come, although its Content-Length counts them."""
    body = json.dumps(document).encode("utf-8")
    return raw(head(200, {"Content-Length": str(len(body))}) + body[:-missing])


def chunked(*chunks: bytes, whole: bool = True) -> Behaviour:
    """A body in chunks of these sizes; not `whole`: the connection ends where the last chunk should be announced."""
    return generated(lambda: chunks, whole=whole)


def generated(chunks: Callable[[], Iterable[bytes]], whole: bool = True) -> Behaviour:
    """A body in chunks that are made while they are sent."""

    def behave(exchange: Exchange) -> bool:
        exchange.send(head(200, {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}))
        for chunk in chunks():
            exchange.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if whole:
            exchange.send(b"0\r\n\r\n")
        return whole

    return behave


def reset(after: bytes = b"") -> Behaviour:
    """The request is read, these bytes are sent, and the connection is reset (RST): the client cannot know."""

    def behave(exchange: Exchange) -> bool:
        if after:
            exchange.send(after)
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        return False

    return behave


def hang() -> Behaviour:
    """Nothing at all, until the server is told to `release()` or stops."""

    def behave(exchange: Exchange) -> bool:
        exchange.released.wait(LONGEST)
        return False

    return behave


def held(then: Behaviour) -> Behaviour:
    """Nothing until the server is told to `release()`, and then that."""

    def behave(exchange: Exchange) -> bool:
        exchange.released.wait(LONGEST)
        return then(exchange)

    return behave


def drip(start: bytes, drop: bytes, pause: float = 0.05) -> Behaviour:
    """The start at once, and then for ever one more drop after each pause: no single read takes long."""

    def behave(exchange: Exchange) -> bool:
        exchange.send(start)
        for _ in range(int(LONGEST / pause)):
            if exchange.released.wait(pause):
                break
            exchange.send(drop)
        return False

    return behave


class ScriptedServer:
    """Listens on a free port of this machine from the moment it is made; a context manager."""

    def __init__(
        self,
        *script: Behaviour,
        always: Optional[Behaviour] = None,
        tls: Optional[ssl.SSLContext] = None,
        instead: Optional[Callable[[socket.socket, threading.Event], Any]] = None,
    ) -> None:
        """A server that meets the n-th request with the n-th behaviour, and later ones with `always`.

        With `instead` it speaks no HTTP: that is done with each connection, which then ends.
        """
        self._script = list(script)
        self._always = always or refuses(418, "the script has ended")
        self._tls = tls
        self._instead = instead
        self._released = threading.Event()
        self._lock = threading.Lock()  # guards _requests, _connections and _threads, and the order of the script
        self._requests: List[Request] = []
        self._connections: List[socket.socket] = []
        self._threads: List[threading.Thread] = []
        self._listener = socket.create_server((HOST, 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"{'https' if tls or instead else 'http'}://{HOST}:{self.port}"
        self._accepting = threading.Thread(target=self._accept, name="scripted server", daemon=True)
        self._accepting.start()

    def __repr__(self) -> str:
        return f"<ScriptedServer {self.url} {len(self.requests)} requests>"

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def requests(self) -> List[Request]:
        """Every request so far, in the order of arrival."""
        with self._lock:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """How many connections were made to it so far, whether or not a request came over them."""
        with self._lock:
            return len(self._connections)

    def release(self) -> None:
        """Lets go of what hangs, is held or drips, now and later."""
        self._released.set()

    def stop(self) -> None:
        """Ends every connection and every thread. Idempotent."""
        self._released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
        self._listener.close()
        self._accepting.join(LONGEST)
        with self._lock:
            connections, threads = list(self._connections), list(self._threads)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(LONGEST)

    def _accept(self) -> None:
        while True:
            try:
                connection, (_, client_port) = self._listener.accept()
            except OSError:  # stopped
                return
            connection.settimeout(LONGEST)
            thread = threading.Thread(target=self._serve, args=(connection, client_port), daemon=True)
            with self._lock:
                self._connections.append(connection)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, client_port: int) -> None:
        # OSError: the client has gone, which is its right. ValueError: it does not speak HTTP, TLS for example.
        with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as closing:
            closing.enter_context(connection)
            if self._instead is not None:
                self._instead(connection, self._released)
                return
            if self._tls is not None:
                connection = closing.enter_context(self._tls.wrap_socket(connection, server_side=True))
            reader = closing.enter_context(connection.makefile("rb"))
            while True:
                request = _read_request(reader, client_port)
                if request is None:
                    return
                behaviour = self._next(request)
                if not behaviour(Exchange(connection, request, self._released)):
                    return

    def _next(self, request: Request) -> Behaviour:
        with self._lock:
            self._requests.append(request)
            return self._script.pop(0) if self._script else self._always


def _read_request(reader: Any, client_port: int) -> Optional[Request]:
    """The next request of a connection; None when the client has closed it."""
    first = reader.readline()
    if not first:
        return None
    method, target, _ = first.decode("latin-1").split(" ", 2)
    headers = dict(_read_headers(reader))
    body = reader.read(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body, client_port)


def _read_headers(reader: Any) -> Iterable[Tuple[str, str]]:
    for line in iter(reader.readline, b"\r\n"):
        if not line:
            return
        name, value = line.decode("latin-1").rstrip("\r\n").split(":", 1)
        yield name.lower(), value.strip()


def closed_port() -> int:
    """A port of this machine on which nobody listens: connecting to it is refused."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
