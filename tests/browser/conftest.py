"""A real api-server, a real Chromium, and pages that report what the browser complains of."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.support import api_server, fleet
from tests.support.airflow_home import Metadata, pointed_at
from tests.support.api_server import ApiServer
from tests.support.fleet import Fleet
from tests.support.postgres import Postgres

playwright = pytest.importorskip("playwright.sync_api", reason="`make dashboard-test` installs playwright")

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = os.environ.get("AIRBRIDGE_SCREENSHOTS")
KEPT = frozenset(
    {
        *("regions-light", "regions-dark", "regions-phone", "workers-light", "workers-dark", "worker-light"),
        *(
            "work-light",
            "work-phone",
            "timeline-light",
            "timeline-dark",
            "timeline-phone",
            "timeline-waiting-light",
        ),
        *(
            "usage-light",
            *("fifty-regions-light", "fifty-regions-dark", "fifty-regions-phone"),
            *("run-light", "run-dark", "run-phone"),
            "parity-light",
            "audit-light",
            "empty-light",
            "dialog-light",
            "dialog-dark",
        ),
    }
)
"""The screenshots that docs/how-to/use-the-dashboard.md shows."""
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1360, "height": 850}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1360, "height": 850}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True},
}


@dataclass
class View:
    """An open page, and the errors and warnings of its console."""

    page: Any
    server: ApiServer
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        """Go to a page of the dashboard, and wait until its scripts have run."""
        self.page.goto(f"{self.server.dashboard}{path}")
        self.until("!document.querySelector('#live') || window.htmx !== undefined")

    def until(self, expression: str, seconds: float = 30.0) -> None:
        """Wait until an expression holds. The page's policy forbids playwright's own way, which evaluates text in the page."""
        deadline = time.monotonic() + seconds
        while not self._holds(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            self.page.wait_for_timeout(100)

    def _holds(self, expression: str) -> bool:
        """Return whether it is true of the current page. A page that is being left has no answer."""
        try:
            return bool(self.page.evaluate(expression))
        except playwright.Error as error:
            if "context was destroyed" not in str(error):
                raise
            return False

    def findings(self) -> list[str]:
        """Return what axe-core finds, however slight."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['impact']} {each['id']}: {[node['target'] for node in each['nodes']]}"
            for each in found["violations"]
        ]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))

    def keep(self, name: str, *, whole: bool = True) -> None:
        """Keep a screenshot for the docs, if `SHOTS` is set."""
        if SHOTS and name in KEPT:
            self.page.screenshot(path=Path(SHOTS) / f"dashboard-{name}.png", full_page=whole)


@dataclass(frozen=True)
class Stage:
    """The server, what it shows, and the browser to look with."""

    server: ApiServer
    fleet: Fleet
    metadata: Metadata
    browser: Any

    @contextmanager
    def view(self, look: str = "light", user: str | None = "admin", **more: Any) -> Iterator[View]:
        """Open a window of its own, signed in if a user is named."""
        context = self.browser.new_context(**{**LOOKS[look], **more})
        try:
            view = View(context.new_page(), self.server)
            view.page.on("console", lambda said: note(view, said))
            view.page.on("pageerror", lambda error: view.complaints.append(f"uncaught: {error}"))
            if user is not None:
                self.sign_in(context, user)
            yield view
        finally:
            context.close()

    def sign_in(self, context: Any, user: str) -> None:
        """Leave the browser as signing in leaves it: Airflow's token in local storage, the dashboard's in its cookie."""
        token = self.server.token(user)
        address = {"url": self.server.dashboard + "/", "httpOnly": True, "sameSite": "Strict"}
        context.add_cookies([{"name": "airbridge_session", "value": token, **address}])
        context.add_init_script(f"if (!sessionStorage.left) localStorage.setItem('token', '{token}')")

    def timeline(self, task: str) -> str:
        """The path of a task's timeline."""
        names = {"dag": self.fleet.dag_id, "run": self.fleet.run_id, "task": task}
        return f"/timeline?{urlencode(names)}"


def note(view: View, message: Any) -> None:
    """Record a console message, if it is an error or a warning."""
    if message.type in {"error", "warning"}:
        view.complaints.append(f"{message.type}: {message.text}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, as the machine has it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    assert program, f"none of {', '.join(names)} is on PATH; `make dashboard-test` installs chromium"
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield opened
        opened.close()


@contextmanager
def served(
    postgres: Postgres, template: str, directory: Path, browser: Any, regions: Sequence[str] = ()
) -> Iterator[Stage]:
    """The platform of `tests.support.fleet`, served by a real api-server; with further regions, a thousand workers in these."""
    name = postgres.create(template)
    with pointed_at(postgres.url(name)) as metadata:
        with metadata.session() as session:
            written = fleet.seed(session)
            if regions:
                fleet.seed_regions(session, regions, workers=1_000, items=6_000)
        settings = fleet.settings(directory, regions)
        with api_server.serve(postgres.url(name), directory / "home", settings=settings) as server:
            yield Stage(server, written, metadata, browser)
    postgres.drop(name)


@pytest.fixture(scope="session")
def stage(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory, browser: Any
) -> Iterator[Stage]:
    """A platform of a few regions."""
    with served(postgres, postgres_template, tmp_path_factory.mktemp("dashboard"), browser) as stage:
        yield stage
