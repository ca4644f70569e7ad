"""The report in a real Chromium: nothing fetched, nothing complained of, WCAG, phone, and paper.

    make test-browser

Pictures of it are left in build/browser, to be looked at.
"""

import zlib
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page
from trenchcoat_report.page import render

from tests.browser.settings import PICTURES, WCAG
from tests.reports import samples

SIZES = {"desktop": (1100, 800), "phone": (360, 740)}
RUNS = {
    "6x2": samples.small,
    "14x9": samples.large,
    "14x9-going-on": lambda: samples.large(complete=False),
}


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports as files, each beside four former runs."""
    folder = tmp_path_factory.mktemp("reports")
    former = [samples.large(name=f"former-{number}", attention={"window": 32}) for number in range(4)]
    made = {}
    for name, run in RUNS.items():
        made[name] = folder / f"{name}.html"
        made[name].write_text(render(run(), former), encoding="utf-8")
    return made


def opened(context: BrowserContext, file: Path) -> tuple[Page, list[str], list[str]]:
    """A page, what the console said, and what was asked for besides the file."""
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    return page, said, [url for url in asked if not url.startswith("data:") and url != file.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RUNS)
def test_it_is_quiet_and_everybody_can_read_it(
    browser: Browser, pages: dict[str, Path], name: str, size: str, scheme: str
) -> None:
    width, height = SIZES[size]
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, offline=True
    )
    page, said, asked = opened(context, pages[name])
    assert said == [] and asked == []
    for details in page.locator("details").all():  # what is folded must be readable, too
        details.evaluate("element => element.open = true")
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": WCAG}}).response["violations"]
    told = [(item["id"], item["help"], [node["target"] for node in item["nodes"]][:3]) for item in found]
    assert told == []
    assert (
        page.evaluate("document.documentElement.scrollWidth") <= width
    )  # tables and pictures scroll by themselves
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}-{size}-{scheme}.png", full_page=True)
    context.close()


def test_light_and_dark_have_other_colours(browser: Browser, pages: dict[str, Path]) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page, _, _ = opened(context, pages["14x9"])
        cell = page.locator("#coat svg path[style*='--error-']").first
        ink = page.locator("#coat svg text").first
        both = [item.evaluate("element => getComputedStyle(element).fill") for item in (cell, ink)]
        assert all(colour.startswith("rgb") for colour in both)
        colours.add((page.evaluate("getComputedStyle(document.body).backgroundColor"), *both))
        context.close()
    assert len(colours) == 2 and all(len(set(pair)) == 2 for pair in zip(*colours, strict=True))


def test_pictures_have_words(browser: Browser, pages: dict[str, Path]) -> None:
    context = browser.new_context()
    page, _, _ = opened(context, pages["14x9"])
    assert page.get_by_role("img").count() == 4
    for name in ("The coat", "Quality of the student", "Losses over", "What ran when"):
        assert page.get_by_role("img", name=name).count() == 1
    context.close()


@pytest.mark.parametrize("name", RUNS)
def test_on_paper_everything_is_there(browser: Browser, pages: dict[str, Path], name: str) -> None:
    """What is folded on the screen is printed, and nothing is wider than the paper."""
    context = browser.new_context(viewport={"width": 794, "height": 1123})
    page, _, _ = opened(context, pages[name])
    page.emulate_media(media="print")
    layer = page.locator("#coat details td").first
    assert layer.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 794
    PICTURES.mkdir(parents=True, exist_ok=True)
    printed = page.pdf(path=PICTURES / f"{name}.pdf", format="A4", print_background=True)
    assert printed.startswith(b"%PDF") and len(zlib.compress(printed)) > 20_000
    page.screenshot(path=PICTURES / f"{name}-print.png", full_page=True)
    context.close()
