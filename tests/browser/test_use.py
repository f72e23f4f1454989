"""Actions of users: sign in and out, watch, search, order, follow a task from Airflow's own page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import update
from tests.browser.conftest import Stage, View
from tests.support import api_server, fleet
from tests.support.postgres import Postgres

from airbridge.executor.ledger import workers
from airbridge.executor.ledger.models import WorkerRow


def log_in(view: View, user: str) -> None:
    """Fill in Airflow's own login form."""
    view.page.fill("input[name=username]", user)
    view.page.fill("input[name=password]", user * 2)
    view.page.click("button[type=submit]")


def wanted(stage: Stage, worker: str) -> tuple[str, str | None]:
    """Return the state that the database wants of a worker, and the comment."""
    with stage.metadata.session() as session:
        row = workers.get(session, worker)
        assert row is not None
        return row.wanted, row.comment


def test_sign_in_returns_to_page(stage: Stage) -> None:
    """A signed-out user with a link logs in to Airflow and lands on that page, query included."""
    with stage.view(user=None) as view:
        view.page.goto(f"{stage.server.dashboard}/work?q=train&state=settled")
        view.page.wait_for_selector("input[name=username]")
        log_in(view, "viewer")
        view.page.wait_for_selector("#live table")
        assert view.page.url == f"{stage.server.dashboard}/work?q=train&state=settled"
        assert view.page.evaluate("document.cookie.includes('airbridge_session')") is False


def test_airflow_session_signs_in(stage: Stage) -> None:
    """From Airflow's UI no second login is needed, and leaving Airflow leaves the dashboard, in every open tab."""
    with stage.view(user=None) as view:
        view.page.goto(f"{stage.server.url}/")
        view.page.wait_for_selector("input[name=username]")
        log_in(view, "viewer")
        view.until("localStorage.getItem('token') !== null")
        view.open("/parity")
        view.page.wait_for_selector("#matrix-heading")
        other = view.page.context.new_page()
        other.goto(f"{stage.server.url}/")
        other.evaluate("localStorage.removeItem('token')")
        view.page.wait_for_selector("input[name=username]")
        view.page.goto(f"{stage.server.dashboard}/parity")
        view.page.wait_for_selector("input[name=username]")


def test_all_admins_need_no_sign_in(
    stage: Stage, postgres: Postgres, postgres_template: str, tmp_path: Path
) -> None:
    """Where Airflow makes everyone an administrator, as in local mode, a link opens without a sign-in."""
    name = postgres.create(postgres_template)
    settings = fleet.settings(tmp_path)
    with api_server.serve(
        postgres.url(name), tmp_path / "home", settings=settings, all_admins=True
    ) as server:
        context = stage.browser.new_context()
        page = context.new_page()
        page.goto(f"{server.dashboard}/workers?q=a")
        page.wait_for_selector("text=No matching workers")
        assert page.url == f"{server.dashboard}/workers?q=a"
        page.goto(f"{server.dashboard}/workers")
        page.wait_for_selector("text=No worker has enrolled yet")
        page.goto(f"{server.dashboard}/work")
        page.wait_for_selector("text=No work has been placed yet")
        context.close()
    postgres.drop(name)


def test_live_update_keeps_focus(stage: Stage) -> None:
    """A change appears without a reload, while focus, the chart and the scroll position stay as they are."""
    with stage.view() as view:
        page = view.page
        view.open("/")
        page.wait_for_selector(".chart canvas")
        page.evaluate("window.same = true; document.querySelector('.chart canvas').same = true")
        page.get_by_role("link", name="sa-east-1").focus()
        with stage.metadata.session() as session:
            session.execute(
                update(WorkerRow).where(WorkerRow.id == "us-east-1-default-disk").values(region="sa-east-1")
            )
            session.commit()
        page.wait_for_selector("#pool-sa-east-1-default >> text=1 draining", timeout=20_000)
        assert page.evaluate("window.same && document.querySelector('.chart canvas').same")
        assert page.evaluate("document.activeElement.textContent") == "sa-east-1"
        with stage.metadata.session() as session:
            session.execute(
                update(WorkerRow).where(WorkerRow.id == "us-east-1-default-disk").values(region="us-east-1")
            )
            session.commit()
        assert [] == view.complaints


def test_lost_connection_is_shown(stage: Stage) -> None:
    """A page that can no longer poll shows since when it is not live, until it can again."""
    with stage.view() as view:
        view.open("/workers")
        view.page.context.set_offline(True)
        view.page.wait_for_selector("#live-state:not([hidden]) >> text=Not live since", timeout=20_000)
        view.page.context.set_offline(False)
        view.page.wait_for_selector("#live-state", state="hidden", timeout=20_000)


def test_searching_needs_no_reload(stage: Stage) -> None:
    """Typed text narrows the list and is in the page's address, to be sent to a colleague."""
    with stage.view("phone") as view:
        page = view.page
        view.open("/work")
        page.evaluate("window.same = true")
        page.fill("[name=q]", "sync_stock")
        view.until("!document.querySelector('#live').textContent.includes('train_model')")
        page.select_option("[name=state]", "settled")
        page.wait_for_url(re.compile(r"/work\?q=sync_stock&state=settled$"))
        assert page.evaluate("window.same")
        assert page.input_value("[name=q]") == "sync_stock"
        assert [] == view.complaints


@pytest.mark.parametrize("look", ["light", "phone"])
def test_commands_are_confirmed_and_audited(stage: Stage, look: str) -> None:
    """Drain, maintenance, resume and revoke: each with a question first, and in the audit log afterwards."""
    worker = {"light": "us-east-1-default-2", "phone": "us-east-1-default-3"}[look]
    with stage.view(look) as view:
        page = view.page
        view.open(f"/workers/{worker}")
        for order, comment, expected in (
            ("Drain", "", ("draining", None)),
            ("Resume", "", ("active", None)),
            ("Maintenance", "new disk", ("maintenance", "new disk")),
            ("Resume", "done", ("active", "done")),
            ("Revoke", "host lost", ("revoked", "host lost")),
        ):
            if order == "Revoke":
                page.get_by_text("More", exact=True).click()
            page.get_by_role("link", name=order).click()
            page.wait_for_selector("dialog[open]")
            page.get_by_role("link", name="Cancel").click()
            page.wait_for_selector("dialog", state="hidden")
            page.get_by_role("link", name=order).click()
            page.wait_for_selector("dialog[open]")
            page.fill("dialog textarea", comment)
            if order == "Revoke":
                page.fill("dialog [name=name]", worker)
            page.get_by_role("button", name=order).click()
            page.wait_for_selector(".flash")
            assert wanted(stage, worker) == expected
        assert page.get_by_role("link", name="Resume").count() == 0
        view.open(f"/audit?worker={worker}")
        trail = page.inner_text("#live")
        for event in ("drain_wanted", "resume_wanted", "maintenance_wanted", "revoked"):
            assert f"worker.{event}" in trail
        assert "user:admin" in trail
        assert [] == view.complaints


def test_commands_work_by_keyboard(stage: Stage) -> None:
    """Enter opens the question, the comment has the focus, Escape takes it back, and Enter on the button gives it."""
    worker = "us-east-1-default-4"
    with stage.view(user="op") as view:
        page = view.page
        view.open(f"/workers/{worker}")
        opener = page.get_by_role("link", name="Maintenance")
        opener.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open] textarea:focus")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="hidden")
        assert wanted(stage, worker)[0] == "active"
        opener.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open] textarea:focus")
        page.keyboard.type("rack move")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector(".flash")
        assert wanted(stage, worker) == ("maintenance", "rack move")


def test_orders_work_without_scripts(stage: Stage) -> None:
    """With JavaScript off, the question is a page of its own and does the same."""
    worker = "us-east-1-default-5"
    with stage.view(java_script_enabled=False) as view:
        page = view.page
        page.goto(f"{stage.server.dashboard}/workers/{worker}")
        page.get_by_role("link", name="Drain").click()
        page.fill("textarea", "no scripts")
        page.get_by_role("button", name="Drain").click()
        assert "drains after its next heartbeat" in page.inner_text(".flash")
    assert wanted(stage, worker) == ("draining", "no scripts")


def test_viewers_are_offered_no_orders(stage: Stage) -> None:
    """Users without the right to give orders see no button for them."""
    with stage.view(user="viewer") as view:
        view.open(f"/workers/{stage.fleet.worker}")
        assert view.page.locator("a[data-dialog]").count() == 0


def test_timeline_is_zoomed_by_keyboard(stage: Stage) -> None:
    """A row's name shows its time alone, over the whole width; from there one moves, and goes back to all of it."""
    with stage.view() as view:
        view.open(stage.timeline("extract"))
        whole = view.page.locator(".gantt tbody tr").count()
        view.page.locator(".gantt tbody th a").last.focus()
        view.page.keyboard.press("Enter")
        view.until("document.querySelector('.zoom') !== null")
        assert view.page.locator(".gantt tbody tr").count() <= whole
        assert [] == view.findings()
        assert view.overflow() <= 0
        view.page.get_by_role("link", name="Out").click()
        view.until("document.querySelector('.gantt') !== null")
        if view.page.locator(".zoom").count():
            view.page.get_by_role("link", name="Whole").click()
        view.until("document.querySelector('.zoom') === null")
        assert view.page.locator(".gantt tbody tr").count() == whole
        assert [] == view.complaints


def test_airflow_button_opens_timeline(stage: Stage) -> None:
    """The button on a task's page in Airflow opens the timeline of that very task."""
    with stage.view() as view:
        page = view.page
        run = stage.fleet.run_id.replace(":", "%3A").replace("+", "%2B")
        page.goto(f"{stage.server.url}/dags/{stage.fleet.dag_id}/runs/{run}/tasks/extract/details")
        button = page.get_by_role("link", name="Timeline")
        button.wait_for()
        with page.context.expect_page() as opened:
            button.click()
        timeline = opened.value
        timeline.wait_for_selector(".cause")
        assert "Try 2: us-east-1, us-east-1-default-1" in timeline.inner_text(".gantt")
