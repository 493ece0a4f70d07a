"""FastAPI under uvicorn: the bill is the server's access log, websockets included."""

from __future__ import annotations

import pathlib
import re
from typing import Optional, Tuple

import pytest

from tests.web.serving import HOST, Service, booked, deliver_rest, until
from tests.web.serving import logged as lines_of
from x402tools.testing import Emulator

pytest.importorskip("fastapi", reason="needs FastAPI")
pytest.importorskip("uvicorn", reason="needs uvicorn")
client_of_websockets = pytest.importorskip("websockets.sync.client", reason="needs websockets")

UVICORN = ["uvicorn", "--fd", "{fd}", "--no-use-colors", "fastapi_app:app"]
REFUSED = 403


def path_and_status(line: str) -> Optional[Tuple[str, int]]:
    """From a line of uvicorn's log; None for the other lines."""
    found = re.search(r'- "GET (\S+) HTTP/1.1" (\d+)', line)
    if found:
        return found[1], int(found[2])
    found = re.search(r'- "WebSocket (\S+)" (?:\[accepted\]|(\d+))', line)
    return (found[1], int(found[2] or 101)) if found else None


def test_bill_is_the_access_log(emulator: Emulator, tmp_path: pathlib.Path) -> None:
    """Whole, streamed, left by the client, a websocket: all with an answer below 500 are billed, the others not."""
    with Service(UVICORN, tmp_path, emulator) as service:
        service.access_log = service.output
        for _ in range(20):
            assert service.get("/plain") == 200
        for path in ("/streamed", "/breaks-midway", "/broken-metering"):
            assert service.get(path) == 200
        assert service.get("/missing") == 404
        assert service.get("/raises") == 500
        assert service.get_and_leave("/endless") == 200
        with client_of_websockets.connect(f"ws://{HOST}:{service.port}/echo") as websocket:
            websocket.send("hello")
            assert websocket.recv() == "hello"
        with pytest.raises(Exception, match="403"):
            client_of_websockets.connect(f"ws://{HOST}:{service.port}/refused")
        until(lambda: booked(emulator)["/endless", 200], "the answer that its client left is billed")
    deliver_rest(service, emulator)

    counts = lines_of(service, path_and_status)
    del counts["/raises", 500], counts["/broken-metering", 200], counts["/breaks-midway", 200]
    assert booked(emulator) == counts
    assert counts["/plain", 200] == 20
    assert counts["/echo", 101] == counts["/refused", REFUSED] == 1
    assert {event.metadata["path"] for event in emulator.events() if not event.metadata["complete"]} == {"/endless"}
