"""The dashboard of a whole running platform: real workers in two regions, real tasks, orders that workers obey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.browser.conftest import LOOKS, View, note
from tests.support.api_server import ApiServer
from tests.support.platform import LocalPlatform, Run, running

SECRETS = ("s3cr3t-connection-password", "s3cr3t-variable-value", "s3cr3t-token-value")
PLANTED = """
from airflow.sdk import DAG, Connection, Variable, task

with DAG("planted", schedule=None):
    @task(retries=0, queue="eu-west-1")
    def leak(token, ti=None):
        had = [Connection.get("planted").password, Variable.get("planted"), token]
        ti.xcom_push("had", [len(each) for each in had])
        raise RuntimeError(" ".join(had))

    leak("s3cr3t-token-value")
"""

CROSSING = """
from airflow.sdk import DAG, task

with DAG("crossing", schedule=None):
    @task(queue="us-east-1")
    def at_home():
        return 1

    @task(queue="eu-west-1")
    def over_there(number):
        return number + 1

    over_there(at_home())
"""


@pytest.fixture(scope="module")
def platform() -> Iterator[LocalPlatform]:
    """Two regions with a worker each."""
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def run(platform: LocalPlatform) -> Run:
    """A task in each region, run to its end."""
    platform.add_dag("planted", PLANTED)
    platform.add_dag("crossing", CROSSING)
    return platform.run("crossing")


@pytest.fixture
def view(platform: LocalPlatform, browser: Any) -> Iterator[View]:
    """A window on the platform, which makes everyone an administrator: nobody signs in."""
    context = browser.new_context(**LOOKS["light"])
    view = View(context.new_page(), ApiServer(platform.state.ui_url, 0, Path()))
    view.page.on("console", lambda said: note(view, said))
    yield view
    context.close()


def open_page(view: View, path: str) -> str:
    """Go to a page, by way of signing in where that is needed; return its text."""
    view.page.goto(f"{view.server.dashboard}{path}")
    view.page.wait_for_selector("#live")
    return str(view.page.inner_text("main"))


def test_every_task_of_a_real_run_can_be_followed(platform: LocalPlatform, run: Run, view: View) -> None:
    """Each task's timeline names its region and worker, draws both sides, and leaves no console error."""
    for (task_id, map_index), (region, worker) in platform.places(run).items():
        names = {"dag": run.dag_id, "run": run.run_id, "task": task_id, "map_index": map_index}
        said = open_page(view, f"/timeline?{urlencode(names)}")
        assert region in said
        assert worker is not None
        assert worker in said
        assert view.page.locator(".gantt rect.run").count() >= 1
    view.keep("live-timeline")
    for name, path in {
        "regions": "/",
        "workers": "/workers",
        "work": "/work",
        "audit": "/audit?source=events",
    }.items():
        open_page(view, path)
        view.keep(f"live-{name}")
        assert [] == view.findings()
    assert [] == view.complaints


def test_regions_are_healthy_and_their_work_is_counted(run: Run, view: View) -> None:
    """Both regions are connected, with a worker each, and what has ended is counted."""
    open_page(view, "/")
    assert view.page.locator(".link.connected").count() == 2
    assert view.page.locator(".figures dd").nth(3).inner_text() == "2"


def test_a_worker_obeys_an_order_from_the_page(platform: LocalPlatform, run: Run, view: View) -> None:
    """Maintenance reaches the worker with its next heartbeat, the page shows it by itself, and resume ends it."""
    worker = min(platform.worker_pids())
    open_page(view, f"/workers/{worker}")
    view.page.get_by_role("link", name="Maintenance").click()
    view.page.wait_for_selector("dialog[open]")
    view.page.fill("dialog textarea", "a test of orders")
    view.page.get_by_role("button", name="Maintenance").click()
    view.page.wait_for_selector(".facts >> text=draining", timeout=60_000)
    view.page.get_by_role("link", name="Resume").click()
    view.page.wait_for_selector("dialog[open]")
    view.page.get_by_role("button", name="Resume").click()
    view.page.wait_for_selector("#live .badge >> text=serving", timeout=60_000)
    assert "a test of orders" in open_page(view, f"/audit?worker={worker}")


def test_secrets_of_a_real_task_are_on_no_page(platform: LocalPlatform, run: Run, view: View) -> None:
    """A connection's password, a variable and a token that a task was given, and that stand in its error, are on no page."""
    connection = {"connection_id": "planted", "conn_type": "generic", "password": SECRETS[0]}
    platform.airflow._json("POST", "/api/v2/connections", connection)
    platform.airflow._json("POST", "/api/v2/variables", {"key": "planted", "value": SECRETS[1]})
    planted = platform.run("planted")
    assert planted.states() == {("leak", -1): "failed"}
    assert platform.xcom(planted, "leak", "had") == [len(secret) for secret in SECRETS]
    names = urlencode({"dag": "planted", "run": planted.run_id, "task": "leak"})
    (_, worker), *_ = platform.places(planted).values()
    for path in (
        "/",
        "/workers",
        f"/workers/{worker}",
        "/work",
        f"/timeline?{names}",
        "/parity",
        "/audit?source=events",
    ):
        open_page(view, path)
        assert not [secret for secret in SECRETS if secret in view.page.content()], path
