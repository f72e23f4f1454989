"""The pages, from a real api-server over Postgres: what they show, what they cost, and what they never show."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest
from sqlalchemy import select, update
from tests.integration.dashboard.conftest import Site
from tests.support.fleet import Fleet

from airbridge.executor.ledger import events
from airbridge.executor.ledger.models import EventRow, WorkItemRow

PAGES = ("/", "/workers", "/work", "/parity", "/audit")


def timeline(fleet: Fleet, task: str) -> str:
    return "/timeline?" + urlencode({"dag": fleet.dag_id, "run": fleet.run_id, "task": task})


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_regions_are_on_one_screen_with_the_network_drawn(site: Site) -> None:
    """Every region of the catalogue is there with its health in words, in the table and in the drawing."""
    with site.server.client("viewer") as client:
        page = client.get("/").text
    assert all(region in page for region in ("us-east-1", "eu-west-1", "ap-south-1", "sa-east-1"))
    assert 'role="img" aria-label="The control plane and its regions.' in page
    assert "ap-south-1: cut off" in page
    assert "none of 2 workers is heard of" in text(page)
    assert "data-chart=" in page


def test_workers_are_found_by_name_region_and_standing(site: Site) -> None:
    """Each filter narrows the list; one that nothing meets says so and leads back."""
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
    assert "No worker is like that" in nobody


def test_a_worker_shows_what_it_said_and_what_it_holds(site: Site) -> None:
    """Version, digest, slots, journal, certificate, heartbeat and the tasks in its hands stand on its page."""
    with site.server.client("viewer") as client:
        page = text(client.get(f"/workers/{site.fleet.worker}").text)
        assert client.get("/workers/nobody").status_code == 404
    for word in ("0.1.0", "4f1c4f1c4f1c", "to report", "Certificate ends", "Last heartbeat", "transform"):
        assert word in page


def test_work_is_found_by_search_state_and_page(site: Site) -> None:
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
    assert "No work is like that" in nothing


def test_a_timeline_has_both_sides_and_says_why_in_one_sentence(site: Site) -> None:
    """A task that was lost and ran again shows both tries, the bars of each side, and every step with who did it."""
    with site.server.client("viewer") as client:
        page = client.get(timeline(site.fleet, "extract")).text
        waiting = client.get(timeline(site.fleet, "load")).text
        missing = client.get(timeline(site.fleet, "nothing"))
        unasked = client.get("/timeline")
    assert "Try 1: us-east-1-default-1" in page
    assert "fenced off: no heartbeat for 20 s" in page
    assert '<rect class="run trouble"' in page
    assert '<rect class="edge' in page
    assert "ap-south-1" in re.search(r'<p class="cause[^>]*>([^<]*)', waiting).group(1)  # type: ignore[union-attr]
    assert re.search(r"<dt>Cause</dt><dd><code>\w+</code>", waiting)
    assert missing.status_code == 404
    assert "Airflow has no task" in missing.text
    assert unasked.status_code == 200
    assert "Which task?" in unasked.text


def test_parity_says_who_runs_what_and_what_is_allowed(site: Site) -> None:
    """Every combination of versions stands there with the matrix's verdict and its reason, the worst first."""
    with site.server.client("viewer") as client:
        page = text(client.get("/parity").text)
    assert page.index("0.0.9") < page.index("4f1c4f1c4f1c")
    assert "must be ==0.1.0" in page
    assert "refused" in page


def test_audit_shows_the_sealed_trail_and_the_events(site: Site) -> None:
    """The trail says who, by which rule and from where, and how far it is sealed; the events are a choice away."""
    with site.server.client("viewer") as client:
        page = text(client.get("/audit").text)
        denied = client.get("/audit?verdict=denied").text
        kind = client.get("/audit?event=token.*").text
        older = client.get("/audit?before=3").text
        events = client.get("/audit?source=events&event=worker.*").text
    assert "Sealed up to entry 8" in page
    assert "1 wait for their seal" in page
    assert "no scope of this token allows workers:revoke" in page
    assert "10.0.4.17:51234" in denied
    assert "token.created" not in denied
    assert "token.created" in kind
    assert "policy.changed" not in older
    assert "worker.enrolled" in events
    assert "request.refused" not in events


def test_what_has_not_changed_is_not_sent_again(site: Site) -> None:
    """A page's live part has an ETag: 304 without a body while it holds, also for what counts seconds."""
    live = {"HX-Request": "true"}
    with site.server.client("viewer") as client:
        for page in (*PAGES, timeline(site.fleet, "extract")):
            first = client.get(page, headers=live)
            assert "<html" not in first.text
            again = client.get(page, headers={**live, "If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b""), page


def test_every_page_forbids_what_is_not_its_own(site: Site) -> None:
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
def test_a_query_that_makes_no_sense_breaks_nothing(site: Site, query: str) -> None:
    """Whatever stands in the query string, the answer is a page."""
    with site.server.client("viewer") as client:
        for page in ("/work", "/workers", "/audit"):
            assert client.get(f"{page}?{query}").status_code == 200


def test_what_others_wrote_is_text_and_not_markup(site: Site) -> None:
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
    """What tasks are given and keep (a password, a variable, a token) lies in the ledger, and no page shows it."""
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


def test_events_are_read_and_not_written_by_looking(site: Site) -> None:
    """Looking at pages leaves nothing behind in the database."""
    with site.metadata.session() as session:
        before = session.query(EventRow).count()
    with site.server.client("admin") as client:
        for page in PAGES:
            client.get(page)
    with site.metadata.session() as session:
        assert session.query(EventRow).count() == before
