"""Meters a WSGI application: Flask, Bottle, Pyramid, plain ones; under any server.

>>> metering = Metering(client, "env_1", metadata=lambda request, response: {"path": request.path})  # doctest: +SKIP
>>> app.wsgi_app = MeteringMiddleware(app.wsgi_app, metering)                                        # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from x402tools.integrations._exchange import NO_ANSWER, Request, Response, was_answered
from x402tools.integrations._meter import Metering

__all__ = ["Metering", "MeteringMiddleware", "Request", "Response"]

Environ = Dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class MeteringMiddleware:
    """Counts each request when the server has closed its answer.

    Put it outermost: it sees the statuses that other middleware makes of exceptions.

    Args:
        app: the application.
        metering: how requests are counted.
    """

    def __init__(self, app: Application, metering: Metering) -> None:
        self.app = app
        self.metering = metering

    def __call__(self, environ: Environ, start_response: StartResponse) -> Any:
        request = Request(environ.get("REQUEST_METHOD", ""), _path(environ), environ, _headers)
        response = Response()

        def start(status: str, headers: List[Tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            write = start_response(status, headers, *exc_info)
            response.begin(int(status[:3]) if status[:3].isdigit() else NO_ANSWER, headers)

            def send(data: bytes) -> object:
                response.send(data)
                return write(data)

            return send

        def ended(error: Optional[BaseException] = None) -> None:
            response.error = response.error or error
            response.end()
            metering = self.metering
            metering.store(metering.work_out(request, response, was_answered(request, response)))

        try:
            body = self.app(environ, start)
        except BaseException as error:
            ended(error)
            raise
        return _watched(body, environ.get("wsgi.file_wrapper"), response, ended)


class _Body:
    """The body on its way to the server, which closes it when it is done with it, whatever happened."""

    def __init__(self, body: Iterable[bytes], response: Response, ended: Callable[[], None]) -> None:
        self._close: Callable[[], object] = getattr(body, "close", lambda: None)
        self._pieces = iter(body)
        self._response = response
        self._ended = ended
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece = next(self._pieces)
        except StopIteration:
            self._response.complete = True
            raise
        except BaseException as error:
            self._response.error = error
            raise
        self._response.send(piece)
        return piece

    def close(self) -> None:
        try:
            self._close()
        finally:
            if not self._is_closed:
                self._is_closed = True
                self._ended()


class _SizedBody(_Body):
    """One of known length: a server that sees a single piece can say its Content-Length."""

    def __init__(self, body: Any, response: Response, ended: Callable[[], None]) -> None:
        super().__init__(body, response, ended)
        self._length = len(body)

    def __len__(self) -> int:
        return self._length


def _watched(body: Any, file_wrapper: Any, response: Response, ended: Callable[[], None]) -> Any:
    if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
        return _watched_file(body, response, ended)
    return (_SizedBody if isinstance(body, (list, tuple)) else _Body)(body, response, ended)


def _watched_file(body: Any, response: Response, ended: Callable[[], None]) -> Any:
    """The server's own wrapper of a file: it must get it back itself, or it cannot let the kernel send the file."""
    close = getattr(body, "close", lambda: None)
    response.body_bytes = None

    def closed() -> None:
        try:
            close()
        finally:
            response.complete = True
            ended()

    body.close = closed
    return body


def _path(environ: Environ) -> str:
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return str(path.encode("latin-1", "replace").decode("utf-8", "replace"))


def _headers(environ: Environ) -> Dict[str, str]:
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return headers
