"""The metered service of the demo, without a server."""

from __future__ import annotations

import io
import os
import pathlib
from typing import Any, Dict, List, Optional, Tuple

import pytest

from x402tools.demo import log_file
from x402tools.demo.log_file import LogFile
from x402tools.demo.service import LARGEST_BODY, Service


class Recorder:
    """Stands for the client: keeps what it is told, and what the access log said at that moment."""

    def __init__(self, access_log: pathlib.Path, error: Optional[Exception] = None) -> None:
        self.records: List[Tuple[str, int, Dict[str, Any]]] = []
        self.seen: List[List[str]] = []
        self._path = access_log
        self._error = error

    def record_usage(self, envelope_id: str, amount: int, metadata: Dict[str, Any]) -> None:
        self.seen.append([entry.words[0] for entry in log_file.entries(str(self._path))])
        if self._error is not None:
            raise self._error
        self.records.append((envelope_id, amount, metadata))


def call(service: Service, body: bytes, **environ: str) -> str:
    """The status of one request."""
    statuses: List[str] = []
    request = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/digest",
        "HTTP_X_CUSTOMER": "acme",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        **environ,
    }
    list(service(request, lambda status, _: statuses.append(status)))
    return statuses[0]


def test_the_order_of_the_access_log(tmp_path: pathlib.Path) -> None:
    """`begin` is in the log before record_usage is called, `done` only when it has returned."""
    path = tmp_path / "access.log"
    recorder = Recorder(path)
    service = Service(recorder, LogFile(str(path)), {"acme": "env_1"})

    status = call(service, b"12345")

    assert status == "200 OK"
    assert recorder.seen == [["begin"]]
    begin, done = log_file.entries(str(path))
    request_id = recorder.records[0][2]["request_id"]
    assert recorder.records == [("env_1", 5, {"endpoint": "/digest", "method": "POST", "request_id": request_id})]
    assert begin.words == ["begin", request_id, "env_1", "5"]
    assert done.words == ["done", request_id]
    assert begin.pid == done.pid == os.getpid()


def test_a_request_that_was_not_recorded(tmp_path: pathlib.Path) -> None:
    """When record_usage raises, the log never says that the request was recorded."""
    path = tmp_path / "access.log"
    service = Service(Recorder(path, RuntimeError("no")), LogFile(str(path)), {"acme": "env_1"})

    with pytest.raises(RuntimeError):
        call(service, b"12345")

    assert [entry.words[0] for entry in log_file.entries(str(path))] == ["begin"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"PATH_INFO": "/"}, "404 Not Found"),
        ({"HTTP_X_CUSTOMER": "nobody"}, "403 Forbidden"),
        ({"CONTENT_LENGTH": str(LARGEST_BODY + 1)}, "413 Content Too Large"),
    ],
)
def test_what_is_refused_costs_nothing(tmp_path: pathlib.Path, change: Dict[str, str], status: str) -> None:
    """A request that is refused is neither billed nor logged."""
    path = tmp_path / "access.log"
    recorder = Recorder(path)
    service = Service(recorder, LogFile(str(path)), {"acme": "env_1"})

    assert call(service, b"1", **change) == status

    assert recorder.records == []
    assert list(log_file.entries(str(path))) == []


def test_the_last_lines_of_a_long_log(tmp_path: pathlib.Path) -> None:
    """The last lines are read without reading the whole file, and none of them is half a line."""
    path = str(tmp_path / "workers.log")
    log = LogFile(path)
    for number in range(1000):
        log.write("delivered", number)

    last = log_file.last_entries(path)

    assert last[-1].words == ["delivered", "999"]
    assert last == list(log_file.entries(path))[-len(last) :]
