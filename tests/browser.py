"""A real browser for the tests of pages: Debian's Chromium, headless, driven by its own driver; nothing but local files is reachable.

`make browser` installs both on Debian; elsewhere any Chromium with a chromedriver of the same version on PATH will do.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.command import Command

needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("chromedriver") is None,
    reason="no chromium and chromedriver on PATH: `make browser` installs them",
)


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A browser that ends with the block."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for switch in (
        "--headless=new",
        "--no-sandbox",  # tests may run as root in a container, where Chromium's sandbox cannot start
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # no name resolves: a page that asked for anything would fail, and be seen below
    ):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: webdriver.Chrome, page: Path, *, scheme: str = "light", width: int = 1280) -> None:
    """Open a local page in a window of `width` pixels, as a reader with the given colour scheme sees it."""
    feature = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())


def complaints(driver: webdriver.Chrome) -> list[str]:
    """Everything on the console since the last call: errors, warnings, refused loads."""
    return [str(entry["message"]) for entry in driver.execute(Command.GET_LOG, {"type": "browser"})["value"]]


def requests(driver: webdriver.Chrome) -> list[str]:
    """The addresses that the page asked for since the last call, embedded data apart."""
    entries = driver.execute(Command.GET_LOG, {"type": "performance"})["value"]
    events = (json.loads(entry["message"])["message"] for entry in entries)
    asked = (event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent")
    return [str(url) for url in asked if not url.startswith("data:")]


def screenshot(driver: webdriver.Chrome, place: Path) -> None:
    """The whole page, as far as it scrolls, as PNG."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    width = driver.execute_script("return document.documentElement.clientWidth")
    size = {"width": width, "height": min(int(height), 12_000), "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.save_screenshot(str(place))
