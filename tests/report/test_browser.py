"""The report in a real browser: console, network, light and dark, keyboard, narrow and wide screens."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import Finished
from made_up_results import NAMES, STUDENTS, example_results
from PIL import Image

from d4m_fast.report.files import write_report
from d4m_fast.report.render import render_report

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(None in (CHROMIUM, CHROMEDRIVER), reason="needs chromium and chromedriver")

SCRIPT = "<script>document.title = 'run by a class name'</script>"
# WCAG 2's contrast of every visible text with what is behind it, drawn by the browser itself on a canvas.
CONTRASTS = """
const canvas = document.createElement('canvas'), context = canvas.getContext('2d', {willReadFrequently: true});
canvas.width = canvas.height = 1;
const blend = colours => {
  context.clearRect(0, 0, 1, 1);
  for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const luminance = rgb => {
  const [r, g, b] = rgb.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const lowest = {};
const kinds = 'h1,h2,h3,p,a,li,th,td,small,strong,caption,figcaption,summary,dt,dd,text';
for (const element of document.querySelectorAll(kinds)) {
  if (!element.checkVisibility() || !element.textContent.trim()) continue;
  const behind = [];
  for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
  const style = getComputedStyle(element);
  const ink = element.tagName === 'text' ? style.fill : style.color;
  const [a, b] = [luminance(blend(behind)), luminance(blend([...behind, ink]))].sort((x, y) => y - x);
  const name = element.tagName + '.' + element.getAttribute('class');
  lowest[name] = Math.min(lowest[name] ?? 21, (a + 0.05) / (b + 0.05));
}
return lowest;
"""
OUTSIDE = """
return [...document.querySelectorAll('svg.chart text')].filter(text => text.checkVisibility()).map(text => {
  const inner = text.getBoundingClientRect(), outer = text.closest('svg').getBoundingClientRect();
  return [text.textContent, outer.left - inner.left, inner.right - outer.right, inner.bottom - outer.bottom];
}).filter(row => Math.max(row[1], row[2], row[3]) > 6);
"""
FOCUSED = """
const e = document.activeElement, style = getComputedStyle(e);
return [e.getAttribute('href'), style.outlineStyle, parseFloat(style.outlineWidth)];
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, finished: Finished) -> Path:
    """A report with everything in it, a class of which is called as a script."""
    first = example_results(students=tuple(STUDENTS), names=(SCRIPT, "a" * 60, *NAMES[2:]))
    html = render_report([first, example_results(1), example_results(50)], finished.run)
    return write_report(tmp_path_factory.mktemp("page"), html)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(CHROMEDRIVER)))
    yield driver
    driver.quit()


def visit(browser: Any, file: Path, mode: str = "light", width: int = 1280) -> None:
    features = [{"name": "prefers-color-scheme", "value": mode}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(file.as_uri())


def screenshot(browser: Any) -> np.ndarray:
    data = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("L"), np.float64)


def requests(browser: Any) -> set[str]:
    """Addresses that were asked for since the last call, but for those that are their own answer."""
    addresses = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            addresses.add(message["params"]["request"]["url"])
    return {address for address in addresses if not address.startswith("data:")}


def test_neither_the_console_nor_the_network_has_anything(browser: Any, file: Path) -> None:
    browser.get_log("performance")
    visit(browser, file)
    assert browser.get_log("browser") == []
    assert requests(browser) == {file.as_uri()}


def test_a_request_would_be_seen(browser: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text("<link rel=icon href='data:,'><img src=missing.png><script>console.error(1)</script>")
    browser.get_log("performance")
    visit(browser, other)
    assert (tmp_path / "missing.png").as_uri() in requests(browser)
    assert len(browser.get_log("browser")) == 2


def test_a_name_that_is_a_script_is_text(browser: Any, file: Path) -> None:
    visit(browser, file)
    assert browser.title == "runs/made-up-ipc10: evaluation"
    assert browser.execute_script("return document.scripts.length") == 0
    assert SCRIPT in browser.execute_script("return document.body.textContent")


def test_every_picture_is_drawn(browser: Any, file: Path) -> None:
    visit(browser, file)
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 12
    assert min(widths) > 0


def test_light_and_dark(browser: Any, file: Path) -> None:
    brightness = []
    for mode in ("light", "dark"):
        visit(browser, file, mode)
        brightness.append(screenshot(browser).mean())
    assert brightness[0] > 200
    assert brightness[1] < 60


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_has_contrast(browser: Any, file: Path, mode: str) -> None:
    visit(browser, file, mode)
    browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true })")
    contrasts = browser.execute_script(CONTRASTS)
    assert {"H1.null", "TD.cell", "text.tick"} <= set(contrasts)
    assert {name: contrast for name, contrast in contrasts.items() if contrast < 4.5} == {}


@pytest.mark.parametrize("width", [400, 768, 1280])
def test_the_page_does_not_scroll_sideways(browser: Any, file: Path, width: int) -> None:
    visit(browser, file, width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(OUTSIDE) == []
    wide = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.execute_script(wide) > 0 or width > 400  # they scroll by themselves


def test_the_keyboard_reaches_every_section(browser: Any, file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    visit(browser, file)
    addresses = browser.execute_script(
        "return [...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))"
    )
    assert len(addresses) == 13
    visited = []
    for _ in range(14):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        href, style, width = browser.execute_script(FOCUSED)
        assert style == "solid"
        assert width >= 2
        visited.append(href)
    assert visited == ["#main", *addresses]
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script("return location.hash") == "#seconds"
    assert browser.execute_script("return scrollY") > 1000
