"""The viewer in a real Chromium before a real API server: log in, the list, a page that follows its run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser.settings import PICTURES, WCAG
from tests.control_plane import ControlPlane, control_plane
from tests.operator.plane.viewing import Server, person, rights, viewer
from tests.reports import samples

KIND = ("trenchcoat.dev", "v1alpha1", "viewer-mine", "trenchcoats", "llama-405b")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as made:
        made.define()
        yield made


def opened(context: BrowserContext) -> tuple[Page, list[str]]:
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    return page, said


def check(page: Page, name: str) -> None:
    """Everybody can read it; a picture of it is left."""
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": WCAG}}).response["violations"]
    assert [(item["id"], [node["target"] for node in item["nodes"]][:3]) for item in found] == []
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"viewer-{name}.png", full_page=name != "page")


def tell(plane: ControlPlane, progress: str) -> None:
    """Write a status as the operator would."""
    run = samples.large(complete=False)
    status = run.trenchcoat.status.model_copy(update={"progress": progress})
    body = {"status": status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)}
    plane.trenchcoats.patch_namespaced_custom_object_status(*KIND, body)


def test_pages_follow_their_runs_without_being_loaded_anew(
    browser: Browser, plane: ControlPlane, tmp_path: Path
) -> None:
    rights(plane)
    token = person(plane, "reader")
    run = samples.large(complete=False).trenchcoat
    metadata = {"name": run.metadata.name, "namespace": "viewer-mine"}
    plane.apply({**run.to_object(), "metadata": metadata}, "viewer-mine")
    tell(plane, "41%")
    with viewer(plane, tmp_path, TRENCHCOAT_VIEWER_REFRESH_SECONDS="1") as server:
        follow(browser, plane, server, token)


def follow(browser: Browser, plane: ControlPlane, server: Server, token: str) -> None:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page, said = opened(context)
    page.goto(server.url)
    check(page, "login")
    page.get_by_label("A token of the cluster").fill("made-up")
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("The API server does not take this token.").wait_for()
    page.get_by_label("A token of the cluster").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name="llama-405b").wait_for()
    check(page, "list")
    said.clear()  # of the two 401 before

    page.evaluate("window.loadedOnce = true")
    tell(plane, "42%")
    page.get_by_role("cell", name="42%").wait_for(timeout=20_000)
    assert page.evaluate("window.loadedOnce")
    page.get_by_role("link", name="llama-405b").click()
    page.get_by_text("This page follows the run.").wait_for()
    check(page, "page")

    # What was unfolded stays so, and the page was not loaded anew.
    page.evaluate("window.loadedOnce = true")
    page.get_by_text("Every layer: what it attends with and why").click()
    page.evaluate("scrollTo(0, 900)")
    before = page.locator("time").get_attribute("datetime")
    tell(plane, "43%")
    page.wait_for_function(
        "before => document.querySelector('time').getAttribute('datetime') !== before",
        arg=before,
        timeout=60_000,
    )
    assert page.evaluate("window.loadedOnce && scrollY === 900")
    assert page.locator("#coat details").first.evaluate("item => item.open")
    assert said == []
    page.get_by_role("link", name="all runs").click()
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("A token of the cluster").wait_for()
    context.close()
