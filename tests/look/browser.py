"""A headless Chromium, Debian's own, and how to wait for what a page shows."""

from __future__ import annotations

import pathlib
from typing import Any, Callable, List, Tuple

import pytest

selenium = pytest.importorskip("selenium", reason="selenium, which drives the browser, is not installed")

from selenium import webdriver  # noqa: E402 - after it is known to be there
from selenium.common.exceptions import WebDriverException  # noqa: E402 - after it is known to be there
from selenium.webdriver.chrome.service import Service  # noqa: E402 - after it is known to be there
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402 - after it is known to be there

CHROMIUM = pathlib.Path("/usr/bin/chromium")
DRIVER = pathlib.Path("/usr/bin/chromedriver")
# No sandbox, because containers do not let root make one; nothing on the network, because only this page is looked at.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 30.0  # seconds, for a machine that is busy with other tests; what is waited for comes within two


def start(profile: pathlib.Path) -> webdriver.Chrome:
    """A browser with an empty profile in that folder; skips the test, with the reason, where there is none."""
    for program in (CHROMIUM, DRIVER):
        if not program.exists():
            pytest.skip(f"there is no {program}; .ci/chromium installs it")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(str(DRIVER)))


def wait_for(browser: webdriver.Chrome, condition: Callable[[], Any], what: str) -> Any:
    """What the condition returns, once that is true. Elements may be replaced while it looks; it then looks again."""
    wait = WebDriverWait(browser, PATIENCE, poll_frequency=0.05, ignored_exceptions=[WebDriverException])
    return wait.until(lambda _: condition(), f"the page never showed {what}")


def text_of(browser: webdriver.Chrome, element_id: str) -> str:
    """The text of an element as it is in the document, whatever of it is visible."""
    return str(browser.execute_script("return document.getElementById(arguments[0]).textContent", element_id))


def resize(browser: webdriver.Chrome, size: Tuple[int, int], *, dark: bool = False) -> None:
    """Give the page a window of that many pixels, and tell it which colours are preferred."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def complaints(browser: webdriver.Chrome) -> List[str]:
    """What the browser complained of since the last call: errors of the script, and breaches of the page's policy."""
    return [entry["message"] for entry in browser.get_log("browser") if "/__emulator__/" not in entry["message"]]
