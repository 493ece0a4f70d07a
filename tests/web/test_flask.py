"""Flask under gunicorn with two workers on one spool: the bill is the server's access log."""

from __future__ import annotations

import pathlib
from typing import Tuple

import pytest

from tests.web.serving import Service, booked, deliver_rest, logged, until
from x402tools.testing import Emulator

pytest.importorskip("flask", reason="needs Flask")
pytest.importorskip("gunicorn", reason="needs gunicorn")

GUNICORN = [
    "gunicorn", "--workers", "2", "--bind", "fd://{fd}", "--access-logfile", "{log}",
    "--access-logformat", "%(s)s %(U)s", "--graceful-timeout", "10", "flask_app:app",
]  # fmt: skip


def path_and_status(line: str) -> Tuple[str, int]:
    """From a line in the format above."""
    status, path = line.split(" ")
    return path, int(status)


@pytest.mark.parametrize("options", [(), ("--preload", "--worker-class", "gthread")], ids=["sync", "gthread-preload"])
def test_bill_is_the_access_log(options: Tuple[str, ...], emulator: Emulator, tmp_path: pathlib.Path) -> None:
    """Whole, streamed, sent as a file, left by the client: all with an answer below 500 are billed, the others not."""
    with Service([*GUNICORN, *options], tmp_path, emulator) as service:
        for _ in range(20):
            assert service.get("/plain") == 200
        for path in ("/streamed", "/file", "/breaks-midway", *5 * ["/broken-metering"]):
            assert service.get(path) == 200
        assert service.get("/missing") == 404
        assert service.get("/raises") == 500
        assert service.get_and_leave("/endless") == 200
        until(lambda: booked(emulator)["/endless", 200], "the answer that its client left is billed")
    deliver_rest(service, emulator)

    counts = logged(service, path_and_status)
    counts["/endless", 200] = 1  # gunicorn logs no answer that broke off
    del counts["/raises", 500], counts["/broken-metering", 200], counts["/breaks-midway", 200]
    assert booked(emulator) == counts
    assert counts["/plain", 200] == 20
    assert {event.metadata["path"] for event in emulator.events() if not event.metadata["complete"]} == {"/endless"}
    assert 1 <= service.output.read_text().count("the metadata function raised LookupError") <= 2  # once a process
