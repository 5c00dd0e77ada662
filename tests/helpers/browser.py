"""A browser without a window, for tests of pages; a mark that skips them where there is none."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def needs_browser(*packages: str) -> pytest.MarkDecorator:
    """Skip without Chromium, its driver, Selenium or one of the packages."""
    missing = [name for name in ("selenium", *packages) if importlib.util.find_spec(name) is None]
    reason = f"needs {', '.join(['chromium', 'chromedriver', 'selenium', *packages])}"
    return pytest.mark.skipif(bool(missing) or not (CHROMIUM and CHROMEDRIVER), reason=reason)


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """A driver that logs what is requested and what the console says."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


def requests(browser: Any) -> list[str]:
    """Addresses that the browser asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [it["params"]["request"]["url"] for it in events if it["method"] == "Network.requestWillBeSent"]
