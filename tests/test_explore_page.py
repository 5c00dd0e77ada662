"""The page of vae_lab.explore in a browser, used as by a user; skipped without Gradio, Selenium or Chromium."""

import os
import signal
import time

import pytest
from helpers.browser import chromium, needs_browser, requests
from helpers.commands import wait_for
from helpers.data import write_pictures

pytestmark = needs_browser("gradio")

MOVE = """
const [value, done] = arguments, slider = document.querySelector('input[type=range]');
const source = () => document.querySelector('#decoded img').src, before = source(), start = performance.now();
const look = () => source() === before ? requestAnimationFrame(look) : done(performance.now() - start);
slider.value = value;
slider.dispatchEvent(new Event('input', {bubbles: true}));
look();
"""


@pytest.fixture
def address(fast_run, command):
    started = command.start(str(fast_run.run), "open=false", module="vae_lab.explore")
    wait_for(lambda: "http://127.0.0.1:" in started.output() or started.output().startswith("error"))
    yield next(word for word in started.output().split() if word.startswith("http://"))
    os.kill(started.pid, signal.SIGINT)
    assert started.wait().code == 130


@pytest.fixture
def browser(address):
    with chromium("--window-size=1400,1100") as driver:
        driver.get(address)
        wait_for(lambda: driver.find_elements("css selector", "#decoded img"))
        yield driver


def test_a_user_goes_through_the_page(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    def element(selector):
        return browser.find_element("css selector", selector)

    def changes(name, act):
        before = element(f"#{name} img").get_attribute("src")
        act()
        wait_for(lambda: element(f"#{name} img").get_attribute("src") not in (before, ""), 20)

    def click(name, right, down):
        """In the picture, at shares of its size from its middle."""
        image = element(f"#{name} img")
        offset = (int(right * image.size["width"]), int(down * image.size["height"]))
        ActionChains(browser).move_to_element_with_offset(image, *offset).click().perform()

    def press(text):
        next(it for it in browser.find_elements("tag name", "button") if it.text == text).click()
        time.sleep(0.5)

    def draw():
        pen = ActionChains(browser).move_to_element_with_offset(element("canvas"), -60, -80).click_and_hold()
        pen.move_by_offset(120, 0).move_by_offset(-70, 160).release().perform()

    picture = write_pictures(tmp_path / "pictures", count=1) / "000.png"
    moves = sorted(browser.execute_async_script(MOVE, str(0.1 * k)) for k in range(1, 21))
    assert moves[10] < 500  # milliseconds from the slider to the picture: 45 on two cores that others use too
    changes("decoded", lambda: click("map", -0.15, 0.1))
    press("Images")
    changes("encoded", lambda: click("examples", 0.1, 0.1))
    press("Draw or drop")
    changes("encoded", draw)
    changes("encoded", lambda: element("#canvas .file").send_keys(str(picture)))
    press("Interpolate")
    changes("strip", lambda: click("ends", 0.2, -0.2))
    press("Play")
    wait_for(lambda: (element("#film img").get_attribute("src") or "").startswith("data:image/webp"), 20)
    press("Samples")
    changes("samples", lambda: press("New samples"))
    changes("decoded", lambda: click("samples", 0.1, 0.1))

    asked = requests(browser)
    assert asked and all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in asked)
    assert browser.get_log("browser") == [] and browser.execute_script("return localStorage.length") == 0
