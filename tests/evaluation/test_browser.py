"""The report and the labelling page in a real browser: offline, silent, readable, in both colour schemes and on a narrow screen."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from evaluation.__main__ import main
from tests.browser import browser, complaints, needs_browser, requests, screenshot, show
from tests.evaluation.made import Made

pytestmark = needs_browser

CONTRAST = """
const channels = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
const behind = node => { for (; node; node = node.parentElement) { const c = channels(getComputedStyle(node).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
let worst = [99, ""];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const parent = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
  if (!words || !parent.getClientRects().length) continue;
  const inside = parent.closest("svg"), style = getComputedStyle(parent);
  const [a, b] = [light(channels(inside ? style.fill : style.color)), light(behind(parent))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < worst[0]) worst = [ratio, words];
}
return worst;
"""
"""The least contrast of any text with what is behind it, and the text (WCAG 2.2, 1.4.3)."""


@pytest.fixture(scope="module")
def window() -> Iterator[webdriver.Chrome]:
    with browser() as driver:
        yield driver


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_opens_offline(
    made: Made, window: webdriver.Chrome, tmp_path: Path, scheme: str, width: int
) -> None:
    page = Path(shutil.copy(made.report / "report.html", tmp_path))
    show(window, page, scheme=scheme, width=width)
    assert complaints(window) == []
    assert requests(window) == [page.as_uri()]
    run = window.execute_script
    assert run("return document.documentElement.scrollWidth") <= width, "the page itself does not scroll sideways"
    assert run("return [...document.images].filter(one => !one.naturalWidth).length") == 0
    assert run("return document.querySelector('h1').getBoundingClientRect().top") < 200, "the verdict comes first"
    assert run("return document.querySelectorAll('svg').length") == 3
    contrast, words = run(CONTRAST)
    assert contrast >= 4.5, words
    screenshot(window, tmp_path / "page.png")
    picture = Image.open(tmp_path / "page.png").convert("L")
    assert picture.width == width
    assert (np.asarray(picture)[3, 3] > 200) == (scheme == "light")
    assert len(picture.crop((0, 0, width, 600)).getcolors(256) or []) > 20, "something is drawn"


def test_the_figures_lie_inside_their_frames(made: Made, window: webdriver.Chrome) -> None:
    show(window, made.report / "report.html")
    outside = window.execute_script(
        """return [...document.querySelectorAll("svg")].flatMap(svg => { const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter(one => { const box = one.getBoundingClientRect();
          return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1; })
          .map(one => one.textContent); });"""
    )
    assert outside == []


def test_hostile_captions_stay_text(made: Made, window: webdriver.Chrome) -> None:
    show(window, made.report / "report.html")
    assert window.execute_script("return document.scripts.length + document.querySelectorAll('[onerror]').length") == 0
    assert "<script>alert('x')</script>" in window.execute_script("return document.body.innerText")


def test_the_labelling_page_asks_keeps_and_exports(
    made: Made, window: webdriver.Chrome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person answers by keys and buttons, comes back after closing the page, and exports; the answers choose a threshold."""
    places = [f"report.dir={made.report}", f"labelling.dir={tmp_path}"]
    assert main(["label", "--config", str(made.config), *places]) is None
    page = tmp_path / "scenes.html"
    window.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    show(window, page)
    total = int(window.find_element("id", "done").get_attribute("max") or 0)
    assert window.find_element("id", "place").text == f"1 of {total}, 0 answered"
    assert not window.find_element("id", "export").is_enabled(), "nothing to export yet"
    window.find_element("id", "rater").send_keys("Ada Ö")
    window.find_element("tag name", "h1").click()
    keys = window.find_element("tag name", "body")
    keys.send_keys("s")
    keys.send_keys("d")
    window.find_element("id", "back").click()
    window.find_element("css selector", "[data-answer=unsure]").click()
    assert window.find_element("id", "place").text == f"3 of {total}, 2 answered"
    show(window, page, scheme="dark", width=390)
    assert window.find_element("id", "place").text == f"1 of {total}, 2 answered", "kept by the browser"
    assert window.execute_script("return document.documentElement.scrollWidth") <= 390
    assert window.execute_script("return [...document.images].filter(one => !one.naturalWidth).length") == 0
    assert window.execute_script(CONTRAST)[0] >= 4.5
    window.find_element("id", "export").click()
    saved = tmp_path / "labels-scenes-Ada-Ö.jsonl"
    WebDriverWait(window, 60).until(lambda _: saved.exists() and saved.stat().st_size > 0)
    answers = [json.loads(line) for line in saved.read_text("utf-8").splitlines()]
    said = [(one["rater"], one["answer"], one["measure"]) for one in answers]
    assert said == [("Ada Ö", "same", "pdq"), ("Ada Ö", "unsure", "pdq")]
    assert complaints(window) == []
    assert {urlsplit(one).scheme for one in requests(window)} <= {"file", "blob"}
    capsys.readouterr()
    assert main(["thresholds", str(made.report), str(saved)]) is None
    chosen = capsys.readouterr().out
    assert "scenes: 2 pairs by 1 raters" in chosen
    assert "blind: no labels" in chosen
