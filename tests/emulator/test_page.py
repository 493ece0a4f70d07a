"""What the emulator says to a browser: the page, the overview behind it, and which requests it does not answer."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
from datetime import datetime, timedelta, timezone
from typing import Dict, Optional
from urllib.parse import urlsplit

import pytest

from tests.emulator.wire import ask, record
from x402tools.emulator import guard
from x402tools.emulator.periods import period_end, period_start
from x402tools.emulator.traffic import SECONDS, Traffic
from x402tools.testing import Emulator, Fault


def send(emulator: Emulator, method: str, path: str, headers: Dict[str, str]) -> int:
    """The status of a request with these headers, `Host` among them."""
    connection = http.client.HTTPConnection(urlsplit(emulator.base_url).netloc, timeout=10)
    body = "[]" if method == "POST" else None
    connection.request(method, path, body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_page_comes_whole_and_loads_nothing_else(emulator: Emulator) -> None:
    """Its policy allows its own script and style by their hash, and its own emulator; it needs no key."""
    answer = ask(emulator, "GET", "/", api_key="none")
    text, policy = answer.body.decode("utf-8"), answer.headers["content-security-policy"]
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)

    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode() in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(https?:|//)""", text) == []
    assert "innerHTML" not in script


def test_the_page_meets_no_fault_and_is_no_request(emulator: Emulator) -> None:
    """It is for looking at an outage, too."""
    emulator.set_faults(Fault.status(500))

    assert ask(emulator, "GET", "/").status == 200
    assert emulator.ledger().requests == 0
    assert emulator.faults_fired() == [0]


def test_the_overview_tells_what_the_page_shows(emulator: Emulator) -> None:
    """Envelopes with what is used of them and when they reset, totals, faults, and what was refused for good."""
    envelope_id = emulator.create_envelope("API calls", limit=10, period="DAILY")
    record(emulator, envelope_id, 7)
    record(emulator, envelope_id, 7)
    record(emulator, "nowhere", 1)
    record(emulator, envelope_id, 1, api_key="wrong")
    emulator.set_faults(Fault.rate_limited(times=1, path="/usage"))
    record(emulator, envelope_id, 1)

    overview = ask(emulator, "GET", "/__emulator__/overview").json

    (envelope,) = overview["envelopes"]
    tomorrow = datetime.now(timezone.utc).date() + timedelta(days=1)
    assert (envelope["id"], envelope["name"], envelope["used"], envelope["limit"]) == (envelope_id, "API calls", 7, 10)
    assert envelope["resets_at"] in (f"{tomorrow}T00:00:00.000Z", f"{tomorrow - timedelta(days=1)}T00:00:00.000Z")
    assert overview["totals"] == {"events": 1, "units": 7, "repeats_dropped": 0, "conflicts": 0, "requests": 6}
    assert overview["refused"] == {"402": 1, "404": 1}
    assert [rule["fired"] for rule in overview["faults"]] == [1]
    assert overview["last_sequence"] == 1
    assert len(overview["seconds"]) == SECONDS


def test_traffic_is_told_by_seconds_and_forgotten() -> None:
    """The second under way is left out, and what is older than the chart is gone; refusals for good stay counted."""
    now = [100.5]
    traffic = Traffic(clock=lambda: now[0])
    for status in (201, 402, 401, 503, 429, None):
        traffic.count("POST", "/usage", status)
    traffic.count("GET", "/envelopes/x", 404)

    under_way = traffic.to_json()["seconds"]
    now[0] += 1
    told = traffic.to_json()
    now[0] += 10 * SECONDS
    later = traffic.to_json()

    assert under_way == [[0, 0, 0]] * SECONDS
    assert told["seconds"] == [[0, 0, 0]] * (SECONDS - 1) + [[1, 3, 3]]
    assert later == {"seconds": [[0, 0, 0]] * SECONDS, "refused": {"402": 1}}


def test_an_answer_that_never_came_counts_as_failed(emulator: Emulator) -> None:
    """A connection that is reset has no status."""
    envelope_id = emulator.create_envelope()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        record(emulator, envelope_id, fault="reset_after")

    def seen() -> int:
        return sum(second[2] for second in ask(emulator, "GET", "/__emulator__/overview").json["seconds"])

    deadline = datetime.now(timezone.utc) + timedelta(seconds=20)
    while seen() == 0 and datetime.now(timezone.utc) < deadline:
        pass  # until the second in which it happened is over

    assert seen() == 1


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:4020", True),
        ("localhost:4020", True),
        ("LOCALHOST", True),
        ("emulator.localhost:4020", True),
        ("[::1]:4020", True),
        ("10.1.2.3:4020", True),  # an address cannot be made to mean another one
        ("", True),  # HTTP/1.0, which no browser speaks
        ("evil.example:4020", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example#localhost", False),
        ("localhost@evil.example", False),
        ("[::1", False),
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(host: str, allowed: bool) -> None:
    """Only this machine's own names, and addresses."""
    assert (guard.objection({b"host": host.encode()}) is None) == allowed


@pytest.mark.parametrize(
    ("origin", "site", "status"),
    [
        (None, None, 200),
        ("http://{host}", "same-origin", 200),
        (None, "none", 200),
        ("https://evil.example", None, 403),
        ("null", None, 403),
        ("https://{host}", None, 403),
        (None, "cross-site", 403),
        (None, "same-site", 403),
    ],
)
@pytest.mark.parametrize("request_line", ["POST /__emulator__/faults", "GET /__emulator__/overview", "GET /"])
def test_a_request_of_another_page_is_refused(
    emulator: Emulator, request_line: str, origin: Optional[str], site: Optional[str], status: int
) -> None:
    """By what the browser says of it; a program, which says nothing, is answered."""
    method, path = request_line.split()
    host = urlsplit(emulator.base_url).netloc
    headers = {"Origin": (origin or "").format(host=host), "Sec-Fetch-Site": site or ""}

    answered = send(emulator, method, path, {name: value for name, value in headers.items() if value})

    assert answered == status


def test_a_foreign_host_gets_neither_the_page_nor_the_control_surface(emulator: Emulator) -> None:
    """The API itself, which asks for a key, is open to any."""
    headers = {"Host": "evil.example", "Authorization": f"Bearer {emulator.api_key}"}

    assert send(emulator, "GET", "/", headers) == 403
    assert send(emulator, "GET", "/__emulator__/ledger", headers) == 403
    assert send(emulator, "GET", "/envelopes", headers) == 200
    assert guard.objection({b"host": b"evil.example"}, ["evil.example"]) is None


@pytest.mark.parametrize("period", ["DAILY", "WEEKLY", "MONTHLY", "YEARLY"])
@pytest.mark.parametrize("reset_day", [None, 1, 7, 15, 28, 29, 30, 31])
def test_a_period_ends_where_the_next_begins(period: str, reset_day: Optional[int]) -> None:
    """On every day of four years, one of them a leap year."""
    day = datetime(2023, 12, 31, 23, 59, 59, tzinfo=timezone.utc)

    for _ in range(4 * 366):
        end = period_end(period, reset_day, day)
        assert end > day
        assert period_start(period, reset_day, end) == end
        assert period_start(period, reset_day, end - timedelta(seconds=1)) == period_start(period, reset_day, day)
        day += timedelta(days=1)
