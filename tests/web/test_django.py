"""Django under gunicorn with two workers on one spool, and under uvicorn: the bill is the server's access log."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from typing import Optional, Tuple

import pytest

from tests.web.serving import ROOT, Service, booked, deliver_rest, logged, until
from x402tools.testing import Emulator

pytest.importorskip("django", reason="needs Django")
pytest.importorskip("gunicorn", reason="needs gunicorn")

GUNICORN = [
    "gunicorn", "--workers", "2", "--bind", "fd://{fd}", "--access-logfile", "{log}",
    "--access-logformat", "%(s)s %(U)s", "--graceful-timeout", "10", "django_app:application",
]  # fmt: skip
UVICORN = ["uvicorn", "--fd", "{fd}", "--no-use-colors", "--lifespan", "off", "django_app:asgi_application"]


def line_of_gunicorn(line: str) -> Tuple[str, int]:
    """From a line in the format above."""
    status, path = line.split(" ")
    return path, int(status)


def line_of_uvicorn(line: str) -> Optional[Tuple[str, int]]:
    """From a line of uvicorn's log; None for the other lines."""
    found = re.search(r'- "GET (\S+) HTTP/1.1" (\d+)', line)
    return (found[1], int(found[2])) if found else None


def test_bill_is_the_access_log_of_gunicorn(emulator: Emulator, tmp_path: pathlib.Path) -> None:
    """Whole, streamed, sent as a file, left by the client: all with an answer below 500 are billed, the others not."""
    with Service(GUNICORN, tmp_path, emulator) as service:
        for _ in range(10):
            assert service.get("/plain") == 200
            assert service.get("/plain-async") == 200
        for path in ("/streamed", "/file", "/breaks-midway", "/broken-metering"):
            assert service.get(path) == 200
        assert service.get("/missing") == 404
        assert service.get("/raises") == 500
        assert service.get_and_leave("/endless") == 200
        until(lambda: booked(emulator)["/endless", 200], "the answer that its client left is billed")
    deliver_rest(service, emulator)

    counts = logged(service, line_of_gunicorn)
    counts["/endless", 200] = 1  # gunicorn logs no answer that broke off
    del counts["/raises", 500], counts["/broken-metering", 200], counts["/breaks-midway", 200]
    assert booked(emulator) == counts
    assert counts["/plain", 200] == counts["/plain-async", 200] == 10


def test_bill_is_the_access_log_of_uvicorn(emulator: Emulator, tmp_path: pathlib.Path) -> None:
    """The same on an event loop, with views of both kinds."""
    with Service(UVICORN, tmp_path, emulator) as service:
        service.access_log = service.output
        for _ in range(10):
            assert service.get("/plain") == 200
            assert service.get("/plain-async") == 200
        for path in ("/file", "/breaks-async", "/broken-metering"):
            assert service.get(path) == 200
        assert service.get("/missing") == 404
        assert service.get("/raises") == 500
        assert service.get_and_leave("/endless-async") == 200
        until(lambda: booked(emulator)["/endless-async", 200], "the answer that its client left is billed")
    deliver_rest(service, emulator)

    counts = logged(service, line_of_uvicorn)
    del counts["/raises", 500], counts["/broken-metering", 200], counts["/breaks-async", 200]
    assert booked(emulator) == counts
    assert counts["/plain", 200] == counts["/plain-async", 200] == 10


WITHOUT_METERING = """
import django
from django.conf import settings
settings.configure(MIDDLEWARE=["x402tools.integrations.django.MeteringMiddleware"], X402TOOLS_METERING={!r})
django.setup()
from django.core.wsgi import get_wsgi_application
get_wsgi_application()
"""


@pytest.mark.parametrize("setting", [None, "os.path"])
def test_setting_that_names_no_metering_is_told(setting: Optional[str]) -> None:
    """When the site starts, with the name of the setting."""
    started = subprocess.run(
        [sys.executable, "-c", WITHOUT_METERING.format(setting)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )

    assert started.returncode != 0
    assert "ImproperlyConfigured: X402TOOLS_METERING must name an x402tools.integrations.Metering" in started.stderr
