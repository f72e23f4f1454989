"""A run's page: where its tasks ran and what moved, in every look, with a few tasks and with a thousand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.browser.conftest import LOOKS, Stage, served
from tests.support import runs
from tests.support.postgres import Postgres

PAGE = f"/run?{urlencode({'dag': runs.DAG, 'run': runs.RUN})}"


@pytest.fixture(scope="module")
def small(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory, browser: Any
) -> Iterator[Stage]:
    with served(postgres, postgres_template, tmp_path_factory.mktemp("run"), browser) as stage:
        with stage.metadata.session() as session:
            runs.seed_run(session)
        yield stage


@pytest.mark.parametrize("look", LOOKS)
def test_run_is_clean(small: Stage, look: str) -> None:
    """No console error, no finding of axe-core, nothing wider than the window; each region has its name and its bars."""
    with small.view(look) as view:
        view.open(PAGE)
        view.page.wait_for_timeout(150)
        view.keep(f"run-{look}")
        assert [*runs.REGIONS] == view.page.locator(".runmap .names .name").all_text_contents()
        assert view.page.locator(".runmap rect.trouble").count() == 2
        assert view.page.locator(".runmap path").count() == 7
        assert [] == view.findings()
        assert view.overflow() <= 0
        assert [] == view.complaints


def test_run_is_reached_and_left_by_keyboard(small: Stage) -> None:
    """The Work page links to the run, the run to the task's timeline, with the keyboard alone."""
    with small.view() as view:
        view.open(f"/work?q={runs.DAG}")
        link = view.page.locator("td.run a").first
        link.focus()
        view.page.keyboard.press("Enter")
        view.until("document.querySelector('.runmap') !== null")
        view.page.locator("#live tbody th a").first.focus()
        view.page.keyboard.press("Enter")
        view.until("location.pathname.endsWith('/timeline')")


def test_unknown_run_is_not_found(small: Stage) -> None:
    """A run that is not there, or not named, is a 404 that says what to do."""
    with small.server.client("viewer") as client:
        missing = client.get("/run?dag=none&run=none")
        assert missing.status_code == 404
        assert "has been placed, or it has been deleted" in missing.text
        assert client.get("/run").status_code == 404


@pytest.mark.slow("make proof-scale")
def test_run_of_a_thousand_tasks(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory, browser: Any
) -> None:
    """A run of a thousand tasks is drawn, in pages of fifty, and the server's time is printed."""
    with served(postgres, postgres_template, tmp_path_factory.mktemp("large-run"), browser) as stage:
        with stage.metadata.session() as session:
            runs.seed_run(session, 1_000)
        with stage.view() as view:
            view.open(PAGE)
            assert view.page.locator(".runmap rect").count() > 1_000
            assert "1\u201350 of 1\u202f001" in view.page.locator(".pager").inner_text()
            assert [] == view.findings()
            assert view.overflow() <= 0
            assert [] == view.complaints
        with stage.server.client("viewer") as client:
            seconds = []
            for _ in range(3):
                time.sleep(2.1)  # the dashboard computes a page anew
                began = time.perf_counter()
                assert client.get(PAGE).status_code == 200
                seconds.append(time.perf_counter() - began)
            print(f"{PAGE}: {1000 * min(seconds):.0f} ms")
