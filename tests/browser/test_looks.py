"""Every page, light, dark and on a phone: nothing in the console, nothing for axe-core to find, nothing too wide."""

from __future__ import annotations

import pytest
from tests.browser.conftest import LOOKS, Stage

PAGES = {
    "regions": "/",
    "workers": "/workers",
    "worker": "/workers/us-east-1-default-1",
    "work": "/work",
    "timeline": "extract",
    "timeline-waiting": "load",
    "usage": "/usage?by=team,dag",
    "parity": "/parity",
    "audit": "/audit",
    "empty": "/work?q=no_such_dag",
    "order": "/workers/us-east-1-default-1/revoke",
    "not-found": "/workers/nobody",
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_is_clean(stage: Stage, look: str) -> None:
    """No console error or warning, no finding of axe-core of any impact, no page wider than the window."""
    with stage.view(look) as view:
        for name, path in PAGES.items():
            view.open(path if path.startswith("/") else stage.timeline(path))
            if name == "regions":
                view.page.wait_for_selector(".chart canvas")
            view.page.wait_for_timeout(150)
            view.keep(f"{name}-{look}", whole=name != "work")
            assert [] == view.findings(), name
            assert view.overflow() <= 0, name
            expected = {
                "error: Failed to load resource: the server responded with a status of 404 (Not Found)"
            }
            said = [each for each in view.complaints if name != "not-found" or each not in expected]
            assert [] == said, name
            view.complaints.clear()


@pytest.mark.parametrize("look", ["light", "dark"])
def test_the_open_dialog_is_clean_too(stage: Stage, look: str) -> None:
    """The question before an order is as readable as the page behind it."""
    with stage.view(look) as view:
        view.open("/workers")
        view.page.get_by_role("link", name=f"Maintenance {stage.fleet.worker}").click()
        view.page.wait_for_selector("dialog[open] textarea")
        view.keep(f"dialog-{look}", whole=False)
        assert [] == view.findings()
        assert [] == view.complaints


def test_keyboard_reaches_everything(stage: Stage) -> None:
    """The first stop is the way past the menu; every link, field and table can be reached and shows that it has been."""
    with stage.view() as view:
        view.open("/workers")
        page = view.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.name") == "q"
        stops = []
        for _ in range(12):
            page.keyboard.press("Tab")
            stops.append(
                page.evaluate(
                    "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]"
                )
            )
        assert {"INPUT", "SELECT", "BUTTON", "A"} <= {tag for tag, _ in stops}
        assert {style for _, style in stops} == {"solid"}
