"""The page of vae_lab.report in a browser: what moves, and that nothing is requested. Skipped where there is none."""

import pytest
from helpers.browser import chromium, needs_browser, requests
from helpers.commands import QUIET, wait_for

pytestmark = needs_browser("plotly")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def browser():
    with chromium("--disable-background-networking") as driver:
        yield driver


def open_page(browser, path):
    requests(browser)
    browser.get_log("browser")
    browser.get(path.as_uri())
    wait = "const done = arguments[0]; setTimeout(done, 300)"  # the first sheet is decoded
    browser.execute_async_script(wait)


def picture(browser):
    return browser.execute_script("return document.querySelector('.frame').toDataURL()")


@pytest.mark.slow
def test_the_latent_space_moves_and_nothing_is_requested(fast_run, command, browser, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    assert command(*QUIET, "model.latent_dim=2", "hydra.run.dir=planar").code == 0
    for folder, moving in ((fast_run.run, "slider"), (tmp_path / "planar", "map")):
        out = tmp_path / f"{moving}.html"
        assert command(str(folder), f"out={out}", module="vae_lab.report").code == 0
        open_page(browser, out)
        shown = [picture(browser)]
        target = browser.find_element("css selector", ".map" if moving == "map" else ".sliders input")
        browser.execute_script("arguments[0].focus()", target)
        for keys in ([Keys.ARROW_RIGHT] * 9, [Keys.ARROW_UP] * 9):
            target.send_keys(*keys)
            browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            shown.append(picture(browser))
        if moving == "map":
            ActionChains(browser).move_to_element_with_offset(target, 60, -80).perform()
            shown.append(picture(browser))
        assert len({*shown}) == len(shown)
        walk = browser.find_element("css selector", ".walk input")
        walk.send_keys(Keys.ARROW_RIGHT)
        assert browser.find_element("css selector", ".peek").is_displayed()
        assert browser.execute_script("return document.querySelectorAll('.plot .main-svg').length") >= 5
        files = [url for url in requests(browser) if not url.startswith(("data:", "blob:"))]
        assert files == [out.as_uri()]
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        wait_for(lambda: browser.execute_script("return document.documentElement.scrollWidth") == PHONE["width"], 5)
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
