"""The dashboard where revocations need a second operator."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from tests.integration.dashboard.conftest import Site
from tests.support import api_server, fleet
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres

from airbridge.executor.ledger.identity import revocations


@pytest.fixture(scope="module")
def site(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """An api-server with the setting."""
    name = postgres.create(postgres_template)
    directory = tmp_path_factory.mktemp("dashboard")
    with pointed_at(postgres.url(name)) as metadata:
        with metadata.session() as session:
            written = fleet.seed(session)
        settings = fleet.settings(directory) | {"AIRFLOW__AIRBRIDGE__FOUR_EYES": "revocation"}
        with api_server.serve(postgres.url(name), directory / "home", settings=settings) as server:
            yield Site(server, written, metadata)
    postgres.drop(name)


def test_one_user_does_not_revoke(site: Site) -> None:
    """An administrator of Airflow is one person: the dashboard names the command for two, and revokes nothing. A drain goes on."""
    worker = "us-east-1-default-3"
    with site.server.client("admin") as client:
        for order, status in (("revoke", 409), ("drain", 303)):
            form = client.get(f"/workers/{worker}/{order}").text
            found = re.search(r'name="form_token" value="([^"]+)"', form)
            assert found is not None
            data = {"form_token": found[1], "comment": "x", "name": worker}
            answer = client.post(f"/workers/{worker}/{order}", data=data)
            assert answer.status_code == status, answer.text
            if order == "revoke":
                assert "a second operator must approve" in answer.text
    with site.metadata.session() as session:
        assert revocations.is_revoked(session, worker=worker) is None
