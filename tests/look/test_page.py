"""The emulator's page, in a real browser: what it shows, what it switches, and what it does not let in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator, List

import pytest

from tests.emulator.wire import ask, record
from tests.look import browser as look
from x402tools.testing import Emulator, Fault

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# One browser is enough: nothing here depends on the Python.
pytestmark = pytest.mark.full

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;\u202e'\""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for the whole file, because starting it takes as long as all of the tests."""
    driver = look.start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Chrome, emulator: Emulator) -> Iterator[Chrome]:
    """The page of a fresh emulator, connected; the browser must find nothing to complain of."""
    look.resize(browser, (1280, 800))
    look.complaints(browser)  # of the test before
    browser.get(emulator.base_url + "/")
    look.wait_for(browser, lambda: look.text_of(browser, "state") == "running", "that the emulator runs")
    yield browser
    assert look.complaints(browser) == []


def rows(page: Chrome) -> List[List[str]]:
    """The cells of the feed, the newest record first."""
    script = "return [...document.getElementById('feed').rows].map(row => [...row.cells].map(c => c.textContent))"
    found: List[List[str]] = page.execute_script(script)
    return found


def meters(page: Chrome) -> List[Any]:
    """Label and value of every bar."""
    script = "return [...document.querySelectorAll('[role=meter]')].map(m => [m.ariaLabel, m.ariaValueText])"
    found: List[Any] = page.execute_script(script)
    return found


def faults(emulator: Emulator) -> List[Any]:
    """The rules in force."""
    found: List[Any] = ask(emulator, "GET", "/__emulator__/faults").json
    return found


def test_usage_shows_up_while_the_page_is_open(page: Chrome, emulator: Emulator) -> None:
    """Bars, totals and the feed follow what is booked, repeated and refused, without a reload."""
    envelope_id = emulator.create_envelope("API calls", limit=100)
    body = {"envelopeId": envelope_id, "amount": 42, "metadata": {"endpoint": "/api/users"}}
    ask(emulator, "POST", "/usage", body, key="once-and-for-all")
    ask(emulator, "POST", "/usage", body, key="once-and-for-all")
    record(emulator, envelope_id, 50)
    record(emulator, envelope_id, 50)

    look.wait_for(page, lambda: look.text_of(page, "dead") == "1", "the refused record")
    look.wait_for(page, lambda: len(rows(page)) == 2, "two records")

    assert meters(page) == [["API calls: used of the limit", "92 percent, 92 of 100"]]
    assert [look.text_of(page, name) for name in ("events", "units", "repeats")] == ["2", "92", "1"]
    assert look.text_of(page, "dead-note") == "402: 1"
    newest, first = rows(page)
    assert [newest[0], *newest[2:]] == ["2", "API calls", "50", "", ""]
    assert [first[0], *first[2:]] == ["1", "API calls", "42", "endpoint=/api/users", "…and-for-all"]


def test_names_and_metadata_are_shown_as_text(page: Chrome, emulator: Emulator) -> None:
    """Mark-up in them makes no element and runs no script."""
    envelope_id = emulator.create_envelope(HOSTILE)
    body = {"envelopeId": envelope_id, "amount": 1, "metadata": {HOSTILE: HOSTILE}}
    ask(emulator, "POST", "/usage", body, key="<b>key</b>")
    ask(emulator, "POST", "/__emulator__/faults", [Fault.status(500, path="/<b>x</b>").to_json()])

    look.wait_for(page, lambda: len(rows(page)) == 1, "the record")
    look.wait_for(page, lambda: "/<b>x</b>" in look.text_of(page, "others"), "the rule of somebody else")

    assert rows(page)[0][2:] == [HOSTILE, "1", f"{HOSTILE}={HOSTILE}", "<b>key</b>"]
    assert meters(page)[0][0] == f"{HOSTILE}: used of the limit"
    assert page.title == "x402 emulator"
    assert page.execute_script("return document.querySelectorAll('main img, main script, main td b').length") == 0


def test_a_switch_sets_a_fault_and_clears_it(page: Chrome, emulator: Emulator) -> None:
    """With the mouse and with the keyboard; a rule that was set elsewhere stays as it is."""
    envelope_id = emulator.create_envelope()
    other = Fault.latency(0.5, path="/envelopes/*")
    emulator.set_faults(other)
    look.wait_for(page, lambda: look.text_of(page, "state") == "1 fault in force", "the fault of the test")
    switch = page.find_element("id", "fault-0")

    switch.click()
    look.wait_for(page, lambda: len(faults(emulator)) == 2, "a second fault")
    during = record(emulator, envelope_id).status
    look.wait_for(page, lambda: look.text_of(page, "failing") not in ("\u2013", "0 %"), "that a request failed")
    switch.send_keys(" ")
    look.wait_for(page, lambda: len(faults(emulator)) == 1, "one fault less")
    after = record(emulator, envelope_id).status

    assert (during, after) == (503, 201)
    assert {**faults(emulator)[0], "fired": 0} == {**other.to_json(), "fired": 0}
    page.find_element("id", "clear").click()
    look.wait_for(page, lambda: faults(emulator) == [], "no fault")


def test_it_says_when_the_emulator_is_away(page: Chrome, emulator: Emulator) -> None:
    """And goes on by itself when it is back on the same port."""
    emulator.stop()
    look.wait_for(page, lambda: look.text_of(page, "state") == "no answer from the emulator", "that it is away")

    emulator.start()
    look.wait_for(page, lambda: look.text_of(page, "state") == "running", "that it is back")

    assert page.get_log("browser")  # Chromium itself tells of each connection that was refused


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_it_fits_its_window_in_both_schemes(page: Chrome, emulator: Emulator, size: Any) -> None:
    """Nothing sticks out to the side, and dark is darker than light."""
    record(emulator, emulator.create_envelope("A name that is so long that it cannot be shown whole " * 4), 10**15)
    look.wait_for(page, lambda: len(rows(page)) == 1, "the record")
    grounds = []

    for dark in (False, True):
        look.resize(page, size, dark=dark)
        grounds.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")

    light, dark_ground = ([int(part) for part in ground.strip("rgb()").split(",")] for ground in grounds)
    assert sum(dark_ground) < sum(light)


def test_everything_that_can_be_operated_has_a_name(page: Chrome, emulator: Emulator) -> None:
    """For people who do not see the page: every switch, button and list has an accessible name."""
    record(emulator, emulator.create_envelope())
    look.wait_for(page, lambda: len(rows(page)) == 1, "the record")
    elements = page.find_elements("css selector", "input, button, select, [role], section, a")
    nameless = [element.get_attribute("outerHTML") for element in elements if not element.accessible_name]

    assert len(elements) > 15
    assert [html for html in nameless if 'role="status"' not in html] == []


def test_a_page_of_another_origin_cannot_switch_faults(browser: Chrome, emulator: Emulator) -> None:
    """Neither a script nor a form of it: the emulator refuses what the browser says comes from elsewhere."""
    with Emulator() as elsewhere:
        browser.get(elsewhere.base_url + "/__emulator__/health")  # another port is another origin, with no policy
        send = (
            "const done = arguments[1]; fetch(arguments[0], {method: 'POST', mode: 'no-cors',"
            " body: '[{\"kind\": \"status\"}]'}).then(() => done('sent'), error => done(String(error)))"
        )
        outcome = browser.execute_async_script(send, emulator.base_url + "/__emulator__/faults")

    assert outcome == "sent"
    assert faults(emulator) == []
