"""The pages, from a real api-server over Postgres: what they show, what they cost, and what they never show."""

from __future__ import annotations

import re
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from sqlalchemy import select, update
from tests.integration.dashboard.conftest import Site
from tests.support.fleet import Fleet

from airbridge.executor.ledger import events, items, leases
from airbridge.executor.ledger.models import EventRow, WorkItemRow

PAGES = ("/", "/workers", "/work", "/usage", "/parity", "/audit")


def timeline(fleet: Fleet, task: str) -> str:
    return "/timeline?" + urlencode({"dag": fleet.dag_id, "run": fleet.run_id, "task": task})


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_regions_page_content(site: Site) -> None:
    """Every region of the catalogue is there with its health in words, in the table and in the drawing."""
    with site.server.client("viewer") as client:
        page = client.get("/").text
    assert all(region in page for region in ("us-east-1", "eu-west-1", "ap-south-1", "sa-east-1"))
    assert 'role="img" aria-label="The control plane and its regions.' in page
    assert "ap-south-1: cut off" in page
    assert "none of 2 workers sends heartbeats" in text(page)
    assert "data-chart=" in page


def test_workers_page_filters(site: Site) -> None:
    """Each filter narrows the list; an empty result has a message and a link back."""
    with site.server.client("viewer") as client:
        every = client.get("/workers").text
        silent = client.get("/workers?standing=silent").text
        refused = client.get("/workers?standing=refused").text
        named = client.get("/workers?q=gpu-1").text
        nobody = client.get("/workers?region=mars").text
    assert "us-east-1-default-1" in every
    assert "ap-south-1-default-1" in silent
    assert "us-east-1-default-1" not in silent
    assert "outside the compatibility matrix: AirBridge is 0.0.9" in text(refused)
    assert "eu-west-1-gpu-1" in named
    assert "eu-west-1-gpu-2" not in named
    assert "No matching workers" in nobody


def test_worker_page_content(site: Site) -> None:
    """Version, digest, slots, journal, certificate, heartbeat and the tasks in its hands stand on its page."""
    with site.server.client("viewer") as client:
        page = text(client.get(f"/workers/{site.fleet.worker}").text)
        assert client.get("/workers/nobody").status_code == 404
    for word in ("0.1.0", "4f1c4f1c4f1c", "to report", "Certificate ends", "Last heartbeat", "transform"):
        assert word in page


def test_work_page_filters(site: Site) -> None:
    """Search looks at DAG, run and task ids; a state, an outcome and a page choose from what it finds."""
    with site.server.client("viewer") as client:
        found = client.get("/work?q=train_model&state=settled").text
        lost = client.get("/work?outcome=lost").text
        second = client.get("/work?page=2").text
        nothing = client.get("/work?q=no_such_dag").text
    assert "train_model" in found
    assert "sync_stock" not in found
    assert "lost" in lost
    assert "51\u2013100 of 304" in second
    assert "No matching work items" in nothing


def test_triggers_stand_apart_from_tasks(site: Site) -> None:
    """Lists of tasks have no triggers of deferred tasks, and a task that deferred is no success; triggers are listed on their own."""
    with site.metadata.session() as session:
        chosen = select(WorkItemRow).where(
            WorkItemRow.dag_id == "train_model", WorkItemRow.outcome == "success"
        )
        row = session.scalars(chosen.limit(1)).one()
        row.detail = "deferred"
        trigger = items.place_trigger(session, row, 4711)
        leases.claim(session, trigger, site.fleet.worker, 3600.0, 7200.0, {})
        task_id = row.task_id
        held = (WorkItemRow.worker_id == site.fleet.worker, WorkItemRow.state == "claimed")
        tasks = session.query(WorkItemRow).filter(*held, WorkItemRow.kind == "task").count()
        session.commit()
    tag = '<span class="tag">trigger</span>'
    with site.server.client("viewer") as client:
        running = client.get("/work?state=claimed&page=1").text
        found = client.get(f"/work?q={task_id}").text
        triggers = client.get("/work?kind=trigger").text
        every = client.get(f"/work?kind=all&q={task_id}").text
        holder = client.get(f"/workers/{site.fleet.worker}?page=1").text
    assert tag not in running + found
    assert '<span class="badge quiet">deferred</span>' in found
    assert tag in triggers
    assert "trigger runs" in triggers
    assert tag in every
    assert "Triggers it holds (1)" in holder
    assert f"Tasks it holds ({tasks})" in holder


def test_timeline_page_content(site: Site) -> None:
    """A task that was lost and ran again shows both tries, the bars of each side, and every step with who did it."""
    with site.server.client("viewer") as client:
        page = client.get(timeline(site.fleet, "extract")).text
        waiting = client.get(timeline(site.fleet, "load")).text
        missing = client.get(timeline(site.fleet, "nothing"))
        unasked = client.get("/timeline")
    assert "Try 1: us-east-1, us-east-1-default-1" in page
    assert "fenced off: no heartbeat for 20 s" in page
    assert '<rect class="run trouble"' in page
    assert '<rect class="edge' in page
    assert "ap-south-1" in re.search(r'<p class="cause[^>]*>([^<]*)', waiting).group(1)  # type: ignore[union-attr]
    assert re.search(r"<dt>Cause</dt><dd><code>\w+</code>", waiting)
    assert missing.status_code == 404
    assert "there is no task" in missing.text
    assert unasked.status_code == 200
    assert "Search a task" in unasked.text
    assert 'name="q"' in unasked.text


def test_timeline_search(site: Site) -> None:
    """Without a task the Timeline page searches one: by the beginning of a DAG, run or task id."""
    with site.server.client("viewer") as client:
        found = client.get("/timeline?q=daily_sa").text
        nothing = client.get("/timeline?q=nothing_like_it").text
    assert re.search(r'href="[^"]*/timeline\?dag=daily_sales&amp;run=[^"]*&amp;task=extract"', found)
    assert "No matching tasks" in nothing


def test_run_ids_stay_on_one_line(site: Site) -> None:
    """A run id is cut to one line; its title has it whole."""
    with site.server.client("viewer") as client:
        page = client.get("/work").text
    assert f'<td class="run" title="{site.fleet.run_id}">' in page.replace("&#43;", "+")


def test_work_page_names_the_exception(site: Site) -> None:
    """A failed item shows the class of its exception beside its state."""
    with site.metadata.session() as session:
        row = session.scalars(select(WorkItemRow).where(WorkItemRow.outcome == "failed").limit(1)).one()
        ended = {
            "at": row.placed_at,
            "event": "task.ended",
            "actor": "w",
            "item_id": row.id,
            "epoch": row.epoch,
        }
        named = {"detail": {"exception": "UnplannedError"}, "source": "edge", "uid": str(uuid4())}
        events.add_once(session, [ended | named])
        session.commit()
    with site.server.client("viewer") as client:
        # Not the address of another test: answers are kept for a moment.
        assert "UnplannedError" in text(client.get("/work?outcome=failed&page=1").text)


def test_parity_page_content(site: Site) -> None:
    """Every combination of versions stands there with the matrix's verdict and its reason, the worst first."""
    with site.server.client("viewer") as client:
        page = text(client.get("/parity").text)
    assert page.index("0.0.9") < page.index("4f1c4f1c4f1c")
    assert "must be ==0.1.0" in page
    assert "refused" in page


def test_audit_page_content(site: Site) -> None:
    """The trail shows actor, rule, address and the last sealed entry; the events are a choice away."""
    with site.server.client("viewer") as client:
        page = text(client.get("/audit").text)
        denied = client.get("/audit?verdict=denied").text
        kind = client.get("/audit?event=token.*").text
        older = client.get("/audit?before=3").text
        events = client.get("/audit?source=events&event=worker.*").text
        every = client.get("/audit?verdict=all").text
        granted = client.get("/audit?verdict=granted").text
        claims = client.get("/audit?event=claim.*").text
    assert "claim.granted" not in page
    assert "Claims that were granted are folded" in page
    assert all("claim.granted" in each and "are folded" not in each for each in (every, granted, claims))
    assert "Sealed up to entry 8" in page
    assert "1 not sealed yet" in page
    assert "no scope of this token allows workers:revoke" in page
    assert "10.0.4.17:51234" in denied
    assert "token.created" not in denied
    assert "token.created" in kind
    assert "policy.changed" not in older
    assert "worker.enrolled" in events
    assert "request.refused" not in events


def test_unchanged_page_gets_304(site: Site) -> None:
    """A page's live part has an ETag: 304 without a body while it holds, also for what counts seconds."""
    live = {"HX-Request": "true"}
    with site.server.client("viewer") as client:
        for page in (*PAGES, timeline(site.fleet, "extract")):
            first = client.get(page, headers=live)
            assert "<html" not in first.text
            again = client.get(page, headers={**live, "If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b""), page


def test_pages_have_strict_csp(site: Site) -> None:
    """No page has a script or style in its text, and its policy would refuse one; nothing is kept by a cache."""
    with site.server.client("admin") as client:
        for page in (*PAGES, f"/workers/{site.fleet.worker}/drain", "/signin", "/nothing"):
            answer = client.get(page)
            policy = answer.headers["content-security-policy"]
            assert "script-src 'self'" in policy
            assert "unsafe" not in policy
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(
                r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", answer.text
            )


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=-5",
        "page=99999999999999999999",
        "page=x",
        "state=wrong",
        "q=%00",
        "q=%25_%27--",
        "q=" + "x" * 5000,
    ],
)
def test_malformed_query_is_ignored(site: Site, query: str) -> None:
    """Any query string, however malformed, is answered with a page."""
    with site.server.client("viewer") as client:
        for page in ("/work", "/workers", "/audit"):
            assert client.get(f"{page}?{query}").status_code == 200


def test_foreign_text_is_escaped(site: Site) -> None:
    """A name, a comment or an error that looks like HTML is shown as it is."""
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    with site.metadata.session() as session:
        row = session.scalars(select(WorkItemRow).where(WorkItemRow.outcome == "failed").limit(1)).one()
        session.execute(
            update(WorkItemRow).where(WorkItemRow.id == row.id).values(detail=evil, task_id=evil[:40])
        )
        events.record(session, "request.refused", evil, why=evil, worker_id=evil[:40])
        session.commit()
    with site.server.client("viewer") as client:
        for page in ("/work?outcome=failed", "/audit?source=events"):
            answer = client.get(page).text
            assert "<script>alert" not in answer
            assert "<img" not in answer
            assert "&lt;script&gt;alert(1)" in answer


def test_planted_secrets_are_on_no_page(site: Site) -> None:
    """Secrets in the ledger that tasks were given (a password, a variable, a token) appear on no page."""
    secrets = {
        "password": "s3cr3t-connection-password",
        "variable": "s3cr3t-variable-value",
        "token": "eyJhbGciOi-s3cr3t-token",
    }
    with site.metadata.session() as session:
        rows = session.scalars(select(WorkItemRow).where(WorkItemRow.dag_id == site.fleet.dag_id)).all()
        ids = [row.id for row in rows if row.run_id == site.fleet.run_id]
        session.execute(
            update(WorkItemRow)
            .where(WorkItemRow.id.in_(ids))
            .values(
                workload={"ti": secrets}, started={"ti_context": secrets}, placement={"why": "x", **secrets}
            )
        )
        session.commit()
    with site.server.client("admin") as client:
        cookie = str(client.cookies["airbridge_session"])
        for page in (
            *PAGES,
            "/audit?source=events",
            f"/workers/{site.fleet.worker}",
            *(timeline(site.fleet, task) for task in ("extract", "transform", "load")),
        ):
            answer = client.get(page).text
            assert "s3cr3t" not in answer, page
            assert cookie not in answer, page


def test_pages_write_nothing(site: Site) -> None:
    """Looking at pages leaves nothing behind in the database."""
    with site.metadata.session() as session:
        before = session.query(EventRow).count()
    with site.server.client("admin") as client:
        for page in PAGES:
            client.get(page)
    with site.metadata.session() as session:
        assert session.query(EventRow).count() == before
