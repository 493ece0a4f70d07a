"""A request and its answer, as the functions that decide about metering see them: the same for WSGI and ASGI."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, Iterable, Optional, Tuple, Union

Headers = Iterable[Tuple[Union[str, bytes], Union[str, bytes]]]

# What stands for the answer when there was none: the application raised, or (as nginx has it) the client left.
NO_ANSWER = 500
CLIENT_LEFT = 499


class Request:
    """A request.

    Attributes:
        method: in upper case; "GET" for a websocket.
        path: as it was asked for, without the query, with the prefix under which the application is mounted.
        is_websocket: True for a websocket, from its handshake to its end.
        native: the WSGI environ or the ASGI scope itself. What frameworks leave there can be used: `native["route"]`
            of FastAPI, for example.
    """

    def __init__(
        self,
        method: str,
        path: str,
        native: Any,
        read_headers: Callable[[Any], Dict[str, str]],
        is_websocket: bool = False,
    ) -> None:
        self.method = method
        self.path = path
        self.native = native
        self.is_websocket = is_websocket
        self._read_headers = read_headers

    @property
    def headers(self) -> Dict[str, str]:
        """The headers, their names in lower case."""
        return self._read_headers(self.native)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"


class Response:
    """What became of a request.

    Attributes:
        status: the HTTP status; 101 for a websocket that was accepted. Without an answer 500, or 499 when the client
            left before there was one.
        answered: True when an answer began.
        complete: True when it was handed to the server to its end.
        body_bytes: bytes of the body that were handed to the server; of a websocket, bytes of the messages sent to the
            client. None where the server itself sends a file.
        seconds: from the request to the end of the answer.
        error: what the application raised, or None.
    """

    def __init__(self) -> None:
        self.status = NO_ANSWER
        self.answered = False
        self.complete = False
        self.body_bytes: Optional[int] = 0
        self.seconds = 0.0
        self.error: Optional[BaseException] = None
        self._headers: Headers = ()
        self._began = time.perf_counter()

    @property
    def headers(self) -> Dict[str, str]:
        """The headers, their names in lower case; of several with one name the last."""
        return {_text(name).lower(): _text(value) for name, value in self._headers}

    def begin(self, status: int, headers: Headers) -> None:
        """The application has given the head of its answer."""
        self.status, self._headers, self.answered = status, headers, True

    def send(self, data: Any) -> None:
        """The application has handed over a piece of the body."""
        if self.body_bytes is not None:
            self.body_bytes += len(data)

    def end(self) -> None:
        """The time is taken."""
        self.seconds = time.perf_counter() - self._began

    def __repr__(self) -> str:
        return f"<Response {self.status}{'' if self.complete else ' incomplete'}>"


def _text(part: Union[str, bytes]) -> str:
    return part if isinstance(part, str) else part.decode("latin-1")


def was_answered(request: Request, response: Response) -> bool:  # noqa: ARG001 - the signature of every `count`
    """The default of `count`: an answer below 500 has begun, and the application has not failed."""
    return response.answered and response.status < NO_ANSWER and response.error is None
