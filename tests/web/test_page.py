"""The page in a real browser: upload, photographs, slider, switch, saving; by mouse and keyboard; wide and narrow."""

import io
import json
import urllib.parse

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
pytest.importorskip("gradio", reason="gradio is the extra app")

pytestmark = pytest.mark.slow

_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# A busy machine answers late.
_PATIENCE = 60_000


@pytest.fixture(scope="module")
def browser(need_program):
    path = need_program("chromium", "google-chrome")
    with playwright.sync_playwright() as control:
        found = control.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield found
        found.close()


class Visit:
    """One visitor: a page, the addresses it asked for, and what went wrong in it."""

    def __init__(self, browser, address, **context):
        self.context = browser.new_context(accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(_PATIENCE)
        self.asked, self.errors = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.goto(address)
        self.settled("astronaut")

    def settled(self, *texts):
        """Waits until the maps on the page have all these texts, such as the name of the image."""
        self.page.wait_for_function(
            "(texts) => { const maps = document.querySelector('#maps');"
            " return maps && texts.every((text) => maps.innerText.includes(text)); }",
            arg=list(texts),
        )

    def text(self, part):
        return self.page.inner_text(f"#{part}")

    def close(self):
        self.context.close()


@pytest.fixture
def visit(browser, running):
    visitor = Visit(browser, running.address, viewport={"width": 1280, "height": 900})
    yield visitor
    visitor.close()


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "<b>name.png")
    return tmp_path / "<b>name.png"


def test_the_first_view(visit, running):
    assert "mamba-r" in visit.text("predictions") and "vim" in visit.text("predictions")
    assert "%" in visit.text("predictions") and " ms" in visit.text("predictions")
    visit.settled("astronaut", "Token norm, layers 3 and 1")
    assert visit.page.locator("#maps .maps img").count() == 3
    assert visit.page.locator("#histogram img.chart").count() == 1
    assert visit.page.title().startswith("mambar: mamba-r and vim")
    # Hostile class names are text, whatever gradio's templates would make of them.
    assert "<img src=x onerror=" in visit.text("predictions") and "{{value}} ${1+1}" in visit.text("predictions")
    assert visit.page.title() != "owned" and visit.page.locator("img[src=x]").count() == 0
    assert visit.errors == []
    own = urllib.parse.urlsplit(running.address).netloc
    places = {urllib.parse.urlsplit(url) for url in visit.asked}
    assert {place.netloc for place in places if place.scheme not in ("data", "blob")} == {own}


def test_upload_then_another_photograph(visit, picture):
    visit.page.set_input_files("#upload input[type=file]", str(picture))
    visit.settled("uploaded image")
    assert visit.page.locator("#photographs input:checked").count() == 0
    before = visit.page.inner_html("#maps")
    visit.page.locator("#photographs label", has_text="chelsea").click()
    visit.settled("chelsea")
    assert visit.page.inner_html("#maps") != before
    assert visit.errors == []


def test_what_is_no_image_is_said(visit, tmp_path):
    (tmp_path / "notes.png").write_text("not an image", "utf-8")
    visit.page.set_input_files("#upload input[type=file]", str(tmp_path / "notes.png"))
    visit.page.wait_for_selector("text=cannot be read as a PNG, JPEG or WEBP")
    assert "astronaut" in visit.text("maps")


def test_the_slider_by_keyboard_and_by_number(visit):
    slider = visit.page.locator("#layer input[type=range]")
    slider.focus()
    visit.page.keyboard.press("ArrowLeft")
    visit.settled("astronaut", "Token norm, layers 2 and 1")
    visit.page.keyboard.press("Home")
    visit.settled("astronaut", "Token norm, layer 0")
    number = visit.page.locator("#layer input[type=number]")
    number.fill("1")
    number.press("Enter")
    visit.settled("astronaut", "Token norm, layers 1 and 0")
    assert visit.errors == []


def test_everything_can_be_reached_by_tab(visit):
    reached = set()
    visit.page.locator("body").click(position={"x": 2, "y": 2})
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        reached.add(
            visit.page.evaluate(
                "() => { const at = document.activeElement, within = at && at.closest('[id]');"
                " let node = at; while (node && !['upload','photographs','layer','scale','resampling','compare',"
                "'share-button'].includes(node.id)) node = node.parentElement; return node ? node.id : ''; }"
            )
        )
    assert {"upload", "photographs", "layer", "scale", "resampling", "compare", "share-button"} <= reached
    # gradio makes each option a stop of its own, chosen with the space bar.
    visit.page.locator("#photographs input").nth(1).focus()
    visit.page.keyboard.press("Space")
    visit.settled("chelsea")


def test_the_switches(visit):
    visit.page.locator("#compare input").uncheck()
    visit.page.wait_for_function("() => !document.querySelector('#predictions').innerText.includes('vim')")
    visit.settled("astronaut", "Token norm, layer 3\n")
    assert visit.page.locator("#maps .block:nth-child(2) .pair img").count() == 1
    visit.page.locator("#compare input").check()
    visit.settled("astronaut", "Token norm, layers 3 and 1")
    visit.page.locator("#scale label", has_text="log").click()
    visit.settled("astronaut", "Token norm, layers 3 and 1", "log scale")
    visit.page.locator("#resampling label", has_text="smooth").click()
    visit.page.wait_for_selector("#maps .smooth")
    drawn = visit.page.locator("#maps .block:nth-child(2) img").first
    assert drawn.evaluate("each => getComputedStyle(each).imageRendering") == "auto"
    assert visit.errors == []


def test_sharing_gives_a_picture_and_numbers(visit):
    visit.page.locator("#share-button").click()
    visit.page.wait_for_selector("#share a.save")
    saved = {}
    for link in visit.page.locator("#share a.save").all():
        with visit.page.expect_download() as download:
            link.click()
        saved[download.value.suggested_filename] = open(download.value.path(), "rb").read()  # noqa: PTH123, SIM115
    assert set(saved) == {"mambar-layer-3.png", "mambar-layer-3.json"}
    assert Image.open(io.BytesIO(saved["mambar-layer-3.png"])).format == "PNG"
    record = json.loads(saved["mambar-layer-3.json"])
    assert [model["model"] for model in record["models"]] == ["mamba-r", "vim"] and record["image"][
        "name"
    ] == "astronaut"
    # The links of an older view go away.
    visit.page.locator("#scale label", has_text="log").click()
    visit.settled("astronaut", "Token norm, layers 3 and 1", "log scale")
    visit.page.wait_for_function("() => document.querySelectorAll('#share a').length === 0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_hangs_over(browser, running, scheme):
    visitor = Visit(browser, running.address, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    try:
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 360
        wide = visitor.page.evaluate(
            "() => [...document.querySelectorAll('#predictions *, #maps *')]"
            ".filter(each => each.getBoundingClientRect().right > 361).length"
        )
        assert wide == 0
        colors = visitor.page.evaluate(
            "() => [getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('#predictions .mambar')).color]"
        )
        paper, ink = (sum(map(int, color[color.index("(") + 1 : -1].split(",")[:3])) for color in colors)
        assert (paper > 600 > 300 > ink) if scheme == "light" else (paper < 200 < 500 < ink)
    finally:
        visitor.close()
