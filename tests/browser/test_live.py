"""The dashboard of a whole running platform: real workers in two regions, real tasks, orders that workers obey."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from tests.browser.conftest import LOOKS, View, note
from tests.support.api_server import ApiServer
from tests.support.platform import LocalPlatform, Run, running

pytestmark = pytest.mark.timeout(300)

SECRETS = ("s3cr3t-connection-password", "s3cr3t-variable-value", "s3cr3t-token-value")
DAGS = """
from airflow.sdk import DAG, Connection, Variable, task

with DAG("crossing", schedule=None):
    @task(queue="us-east-1")
    def at_home():
        return 1

    @task(queue="eu-west-1")
    def over_there(number):
        return number + 1

    over_there(at_home())

with DAG("planted", schedule=None):
    @task(retries=0, queue="eu-west-1")
    def leak(token, ti=None):
        had = [Connection.get("planted").password, Variable.get("planted"), token]
        ti.xcom_push("had", [len(each) for each in had])
        raise RuntimeError(" ".join(had))

    leak("{{ var.value.planted_token }}")
"""


@pytest.fixture(scope="module")
def platform() -> Iterator[LocalPlatform]:
    """Two regions with a worker each."""
    with running(airflow={"airbridge.heartbeat_interval": "1"}) as started:
        started.add_dag("live", DAGS)
        yield started


@pytest.fixture(scope="module")
def run(platform: LocalPlatform) -> Run:
    """A task in each region, run to its end."""
    return platform.run("crossing")


@pytest.fixture
def view(platform: LocalPlatform, browser: Any) -> Iterator[View]:
    """A page on the platform, which makes everyone an administrator: there is no sign-in."""
    context = browser.new_context(**LOOKS["light"])
    view = View(context.new_page(), ApiServer(platform.state.ui_url, 0, Path()))
    view.page.on("console", lambda said: note(view, said))
    yield view
    context.close()


def open_page(view: View, path: str) -> str:
    """Go to a page, by way of signing in where that is needed; return its text."""
    view.page.goto(f"{view.server.dashboard}{path}")
    view.page.wait_for_selector("#live")
    view.until("window.htmx !== undefined")
    return str(view.page.inner_text("main"))


def timeline(run: Run, task_id: str) -> str:
    """The path of a task's timeline."""
    return f"/timeline?{urlencode({'dag': run.dag_id, 'run': run.run_id, 'task': task_id})}"


def test_real_run_timelines(platform: LocalPlatform, run: Run, view: View) -> None:
    """Each timeline names region and worker and draws both sides; no page has a console error or a finding of axe-core."""
    for (task_id, _), (region, worker) in platform.places(run).items():
        view.page.goto(f"{view.server.url}/airbridge")  # the slash is not needed
        view.page.wait_for_selector(
            "#live"
        )  # the way by the sign-in ends there, and would overtake the next page
        said = open_page(view, timeline(run, task_id))
        assert f"ended on {worker} in {region} as success" in said
        view.page.wait_for_selector(".gantt rect.run")
        view.page.wait_for_selector("th >> text=process ended")
    for path in ("/", "/workers", "/work", "/audit?source=events", timeline(run, "over_there")):
        open_page(view, path)
        assert [] == view.findings(), path
    open_page(view, "/")
    assert 2 == view.page.locator(".link.connected").count()
    assert [] == view.complaints


def test_log_links_to_timeline(platform: LocalPlatform, run: Run, view: View) -> None:
    """In Airflow's UI the log opens with where the task ran, and the address there is a link to its timeline."""
    (_, worker) = platform.places(run)["over_there", -1]
    view.page.goto(f"{view.server.url}/dags/{run.dag_id}/runs/{quote(run.run_id, safe='')}/tasks/over_there")
    view.page.wait_for_selector(f"text=Runs on {worker} in eu-west-1")
    view.page.goto(str(view.page.locator("a[href*='/airbridge/timeline']").get_attribute("href")))
    view.page.wait_for_selector(".cause >> text=ended on")


def test_worker_follows_page_command(platform: LocalPlatform, run: Run, view: View) -> None:
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


def test_pages_contain_no_secrets(platform: LocalPlatform, view: View) -> None:
    """A connection's password, a variable and a token that a task was given, and that stand in its error, are on no page."""
    post = platform.airflow._json
    connection = {"connection_id": "planted", "conn_type": "generic", "password": SECRETS[0]}
    post("POST", "/api/v2/connections", connection)
    post("POST", "/api/v2/variables", {"key": "planted", "value": SECRETS[1]})
    post("POST", "/api/v2/variables", {"key": "planted_token", "value": SECRETS[2]})
    planted = platform.run("planted")
    assert {("leak", -1): "failed"} == planted.states()
    assert [len(secret) for secret in SECRETS] == platform.xcom(planted, "leak", "had")
    time.sleep(3)  # the edge's events arrive with its next heartbeat
    (_, worker) = platform.places(planted)["leak", -1]
    pages = ("/", "/workers", f"/workers/{worker}", "/work", timeline(planted, "leak"), "/parity")
    for path in (*pages, "/audit", "/audit?source=events"):
        open_page(view, path)
        assert [] == [secret for secret in SECRETS if secret in view.page.content()], path
