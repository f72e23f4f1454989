"""Access to the dashboard: sessions, roles, orders, and cross-site requests."""

from __future__ import annotations

import re

import httpx
import pytest
from sqlalchemy import select
from tests.integration.dashboard.conftest import Site

from airbridge.control_plane.dashboard import sessions
from airbridge.executor.ledger import workers
from airbridge.executor.ledger.identity import revocations
from airbridge.executor.ledger.models import EventRow

PAGES = (
    "/",
    "/workers",
    "/workers/us-east-1-default-1",
    "/work",
    "/timeline",
    "/run?dag=none&run=none",
    "/usage",
    "/parity",
    "/audit",
)


def form_token(page: str) -> str:
    return page.split('name="form_token" value="')[1].split('"', maxsplit=1)[0]


def give(client: httpx.Client, worker: str, order: str, **fields: str) -> httpx.Response:
    """Confirm an order as its form does."""
    token = form_token(client.get(f"/workers/{worker}/{order}").text)
    return client.post(f"/workers/{worker}/{order}", data={"form_token": token, **fields})


@pytest.mark.parametrize("page", PAGES)
def test_signed_out_user_is_redirected(site: Site, page: str) -> None:
    """Without a session a page redirects to signing in, with the way back; htmx requests are refused."""
    with site.server.client() as client:
        answer = client.get(page + "?q=a%26b")
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/airbridge/signin?next=%2Fairbridge")
        # Quoted twice: as a parameter of the page, which is a parameter of the sign-in page.
        assert "q%3Da%2526b" in answer.headers["location"]
        assert client.get(page, headers={"HX-Request": "true"}).status_code == 401


def test_trailing_slash_is_optional(site: Site) -> None:
    """`/airbridge` leads to `/airbridge/`, query and all; what only begins like it is Airflow's."""
    with httpx.Client(base_url=site.server.url, timeout=30, trust_env=False) as client:
        answer = client.get("/airbridge?region=eu-west-1")
        assert (307, "/airbridge/?region=eu-west-1") == (answer.status_code, answer.headers["location"])
        assert 200 == client.get("/airbridge", follow_redirects=True).status_code
        assert "location" not in client.get("/airbridges").headers


def test_session_requires_valid_airflow_token(site: Site) -> None:
    """No token, a forged or a foreign one begins nothing, and a forged cookie opens nothing."""
    token = site.server.token("viewer")
    forged = token[:-4] + ("AAAA" if not token.endswith("AAAA") else "BBBB")
    with site.server.client() as client:
        for bearer in ("x", "x.y.z", forged):
            assert client.post("/session", headers={"Authorization": f"Bearer {bearer}"}).status_code == 401
        client.cookies.set(sessions.COOKIE, forged)
        assert client.get("/").status_code == 303


def test_session_cookie_attributes(site: Site) -> None:
    """The cookie is HttpOnly, SameSite=Strict and for the dashboard's path alone."""
    with site.server.client() as client:
        bearer = {"Authorization": f"Bearer {site.server.token('viewer')}"}
        cookie = client.post("/session", headers=bearer).headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/airbridge"))


def test_signing_out_ends_the_session(site: Site) -> None:
    """Ending the session takes the cookie back."""
    with site.server.client("viewer") as client:
        assert client.get("/").status_code == 200
        assert client.post("/session/end").status_code == 204
        assert client.get("/").status_code == 303


def test_viewers_see_and_do_not_steer(site: Site) -> None:
    """Viewers and users see every page and no orders; requesting one is refused and changes nothing."""
    for role in ("viewer", "user"):
        with site.server.client(role) as client:
            for page in PAGES[:4]:
                assert client.get(page).status_code == 200
            assert "data-dialog" not in client.get("/workers").text
            for order in ("drain", "maintenance", "resume", "revoke"):
                url = f"/workers/{site.fleet.worker}/{order}"
                assert client.get(url).status_code == 403
                assert client.post(url, data={"form_token": "x"}).status_code == 403
    with site.metadata.session() as session:
        assert workers.get(session, site.fleet.worker).wanted == "active"  # type: ignore[union-attr]


def test_commands_are_audited_by_user(site: Site) -> None:
    """An operator's orders do what the command line's do, and the audit log has the user and the reason."""
    worker = "us-east-1-default-2"
    with site.server.client("op") as client:
        for order, wanted in (("drain", "draining"), ("maintenance", "maintenance"), ("resume", "active")):
            answer = give(client, worker, order, comment="kernel update <b>")
            assert answer.status_code == 303
            assert answer.headers["location"] == f"/airbridge/workers/{worker}?done={order}"
            with site.metadata.session() as session:
                row = workers.get(session, worker)
                assert row is not None
                assert (row.wanted, row.comment) == (wanted, "kernel update <b>")
        trail = client.get(f"/audit?worker={worker}").text
    with site.metadata.session() as session:
        written = session.scalars(
            select(EventRow).where(EventRow.worker_id == worker, EventRow.actor == "user:op")
        ).all()
    assert {"worker.drain_wanted", "worker.maintenance_wanted", "worker.resume_wanted"} == {
        event.event for event in written
    }
    assert "kernel update &lt;b&gt;" in trail
    assert "user:op" in trail


def test_revoking_is_for_good(site: Site) -> None:
    """Revoking refuses the name from now on; afterwards no other order is taken."""
    worker = "us-east-1-default-3"
    with site.server.client("admin") as client:
        assert give(client, worker, "revoke", comment="host lost", name=worker).status_code == 303
        again = client.get(f"/workers/{worker}/resume").text
        refused = client.post(f"/workers/{worker}/resume", data={"form_token": form_token(again)})
        assert refused.status_code == 409
        assert "is revoked; a new name must enrol" in refused.text
    with site.metadata.session() as session:
        assert revocations.is_revoked(session, worker=worker) is not None


def test_revoking_needs_name_and_reason(site: Site) -> None:
    """Revoking behind its menu asks for the worker's name and a reason; without either nothing changes."""
    worker = site.fleet.worker
    with site.server.client("admin") as client:
        listed = client.get("/workers").text
        assert re.search(r'<details class="menu"[^>]*>(?:(?!</details>).)*/revoke"', listed, re.DOTALL)
        outside = re.sub(r"<details.*?</details>", "", listed, flags=re.DOTALL)
        assert "/revoke" not in outside
        unnamed = give(client, worker, "revoke", comment="host lost", name="another")
        unexplained = give(client, worker, "revoke", comment=" ", name=worker)
    assert (400, 400) == (unnamed.status_code, unexplained.status_code)
    assert f"type the worker&#39;s name, {worker}, to revoke it" in unnamed.text
    assert "revoke needs a comment with the reason" in unexplained.text
    with site.metadata.session() as session:
        assert workers.get(session, worker).wanted == "active"  # type: ignore[union-attr]


def test_invalid_commands_change_nothing(site: Site) -> None:
    """A missing comment, a comment too long and a worker that is not there are answered in words, and change nothing."""
    with site.server.client("op") as client:
        bare = give(client, site.fleet.worker, "maintenance", comment="  ")
        long = give(client, site.fleet.worker, "drain", comment="x" * 1001)
        assert (bare.status_code, long.status_code) == (400, 400)
        assert "maintenance needs a comment with the reason" in bare.text
        assert "1001 characters, must have at most 1000" in long.text
        assert client.get("/workers/nobody/drain").status_code == 404
        assert client.get(f"/workers/{site.fleet.worker}/explode").status_code == 404
        assert give(client, site.fleet.worker, "drain", comment="x" * 20_000).status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_cross_site_requests_are_refused(site: Site, headers: dict[str, str]) -> None:
    """An order, a sign-in or a sign-out that another site sends with the user's cookie is refused, token or not."""
    with site.server.client("op") as client:
        url = f"/workers/{site.fleet.worker}/drain"
        data = {"form_token": form_token(client.get(url).text)}
        assert client.post(url, data=data, headers=headers).status_code == 403
        assert client.post("/session/end", headers=headers).status_code == 403
    with site.metadata.session() as session:
        assert workers.get(session, site.fleet.worker).wanted == "active"  # type: ignore[union-attr]


def test_foreign_form_token_is_refused(site: Site) -> None:
    """The form's token belongs to one session: another user's, an old one or none does nothing."""
    url = f"/workers/{site.fleet.worker}/drain"
    with site.server.client("admin") as other:
        theirs = form_token(other.get(url).text)
    with site.server.client("op") as client:
        for token in ("", "0" * 64, theirs):
            answer = client.post(url, data={"form_token": token})
            assert answer.status_code == 403
            assert "The form has expired" in answer.text
        # Every browser sends Origin or Sec-Fetch-Site with a POST.
        client.headers.pop("Origin")
        mine = form_token(client.get(url).text)
        assert client.post(url, data={"form_token": mine}).status_code == 403


def test_airflow_tasks_have_timeline_link(site: Site) -> None:
    """Airflow's UI gets the link for a task whose operator defines none."""
    task = f"{site.fleet.dag_id}/dagRuns/{site.fleet.run_id}/taskInstances/extract"
    bearer = {"Authorization": f"Bearer {site.server.token('viewer')}"}
    answer = httpx.get(f"{site.server.url}/api/v2/dags/{task}/links", headers=bearer)
    link = answer.json()["extra_links"]["Timeline"]
    with site.server.client("viewer") as client:
        assert "Time by step" in client.get(f"{site.server.url}{link}").text
