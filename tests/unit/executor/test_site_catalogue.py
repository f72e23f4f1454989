"""Sites of environment files in the catalogue that the stacks write, read by the executor's own parser."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.infra.factories import environment, region
from tests.infra.sites import brokered, site
from tests.unit.docs.pages import ROOT, Page

from airbridge.control_plane.gateway.brokering.session_policy import LONGEST, session_policy
from airbridge.core.catalogue import Catalogue
from airbridge.core.hints import names_data


@pytest.fixture(autouse=True)
def _infra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "infra" / "src"))


def written(*sites: dict[str, Any], **changes: Any) -> Catalogue:
    """Return the catalogue of an environment with these sites. Raises UnsafeStackError or EnvironmentFileError for wrong ones."""
    from airbridge.infra import catalogue
    from airbridge.infra.environment import parse

    made = parse(environment(site=list(sites), **changes), "test.toml")
    return Catalogue.parse(catalogue.render(made.home_region, catalogue.expected(made)))


def test_gateway_site_is_read_with_its_fields() -> None:
    """A site behind the gateway: its AWS region, transport, resources, data and what its pool's hosts have; no role."""
    pool = {"slots": 4, "slot_memory": "4GiB", "slot_cpus": 2, "max_absence_days": 90, "triggers": "home"}
    found = written(site(pool=[pool])).region("factory-7")
    assert found is not None
    assert (found.aws, found.transport, found.credentials) == ("eu-west-1", "gateway", "host")
    assert found.log_bucket == "airbridge-test-site-factory-7-logs-123456789012"
    assert found.bundle_bucket == "airbridge-test-site-factory-7-bundles-123456789012"
    queues = "https://sqs.eu-west-1.amazonaws.com/123456789012/airbridge-test-site-factory-7"
    assert found.dead_letter_queue_url == f"{queues}--dead-letters"
    [default] = found.pools
    assert (default.name, default.queue_url, default.role_arn) == ("default", f"{queues}-default", None)
    assert (default.slots, default.slot_memory, default.slot_cpus) == (4, 4 * 2**30, 2)
    assert (default.max_absence_days, found.triggers_of(default)) == (90, "home")
    assert found.holds("file:///data/press/today.csv")


def test_brokered_site_is_read_with_its_roles() -> None:
    """Each pool has the role that the gateway assumes for it, and session policies stay inside the limit of STS."""
    pools = [{"slots": 4}, {"name": "press", "slots": 1, "xcom_inline_bytes": 1024}]
    found = written(brokered(pool=pools, residency="open")).region("depot-3")
    assert found is not None
    assert {pool.name: pool.role_arn for pool in found.pools} == {
        name: f"arn:aws:iam::123456789012:role/airbridge-test-site-depot-3-{name}"
        for name in ("default", "press")
    }
    assert {found.credentials_of(pool) for pool in found.pools} == {"brokered"}
    assert all(len(session_policy(found, pool)) <= LONGEST for pool in found.pools)


def test_sites_count_in_limits_teams_and_prices() -> None:
    """Limits, quotas and prices name a site as they name a region."""
    team = {"name": "plant", "bundles": ["plant"], "quota": {"factory-7": 2}}
    limit = {"name": "press", "max_running": 1, "pools": ["factory-7"]}
    prices = {"egress": {"factory-7": 1.0}, "slot_hour": {"factory-7": 0.5}}
    assert written(site(), team=[team], limit=[limit], prices=prices).region("factory-7")


def test_guide_shows_accepted_sites() -> None:
    """The sites of the how-to have only keys that exist, and the executor reads them."""
    example = Page(ROOT / "docs/how-to/run-a-worker-anywhere.md").blocks("toml")[0]
    found = written(*tomllib.loads(example)["site"])
    assert found.names == ("depot-3", "eu-west-1", "factory-7")


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,6}(-[a-z0-9]{1,5}){0,2}", fullmatch=True)
BYTES = st.sampled_from([None, None, 0, 1024])


@st.composite
def anything(draw: st.DrawFn) -> dict[str, Any]:
    """A site that may well be wrong."""
    pools = [
        {"name": draw(NAMES), "slots": draw(st.integers(1, 4)), "xcom_inline_bytes": draw(BYTES)}
        for _ in range(draw(st.integers(1, 2)))
    ]
    made = draw(st.sampled_from([site, brokered]))(
        draw(NAMES | st.sampled_from(["eu-west-1", "us-west-2", *3 * ["factory-7"]])),
        residency=draw(st.sampled_from(["open", "strict"])),
        xcom_inline_bytes=draw(BYTES),
        pool=pools,
    )
    made["pool"] = [{key: value for key, value in pool.items() if value is not None} for pool in pools]
    return {key: value for key, value in made.items() if value is not None}


@given(anything())
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_accepted_sites_are_read(made: dict[str, Any]) -> None:
    """What the environment's rules accept the executor's parser reads: nothing fails first in a control plane that starts."""
    from airbridge.infra.environment import Site
    from airbridge.infra.exceptions import EnvironmentFileError, UnsafeStackError

    try:
        found = written(made, region=[region(), region("us-west-2", "10.2.0.0/20")])
    except (EnvironmentFileError, UnsafeStackError):
        return
    assert {"eu-west-1", "us-west-2", made["name"]} == set(found.names)
    read, entry = found.region(made["name"]), Site.model_validate(made)
    assert read is not None
    for own in entry.pools:
        pool = read.pool(own.name)
        assert pool is not None
        # What the gateway's session policy allows, the role of the stacks has.
        stored = read.credentials_of(pool) == "brokered" and "/xcoms/*" in session_policy(read, pool)
        assert stored is (entry.is_brokered and entry.stores_xcoms(own))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/a",
        "gs://bucket",
        "file:///data",
        "jdbc:h2:mem",
        "x",
        "http:",
        "jdbc:",
        "file:///",
        "://",
        "a b",
    ],
)
def test_accepted_data_is_read(uri: str) -> None:
    """Data has the same form in environment files as in the catalogue."""
    from airbridge.infra.validation import require_data_uri

    try:
        accepted = bool(require_data_uri(uri))
    except ValueError:
        accepted = False
    assert names_data(uri) is accepted


def test_tasks_of_a_site_may_have_a_role() -> None:
    """The executor reads the role of a pool's tasks, behind the gateway as with brokered credentials."""
    statement = {"actions": ["s3:GetObject"], "resources": ["arn:aws:s3:::example-press/*"]}
    for made in (site, brokered):
        found = written(made("depot-3", pool=[{"slots": 4, "task_statements": [statement]}])).region(
            "depot-3"
        )
        assert found is not None
        [pool] = found.pools
        assert (
            pool.task_role_arn == "arn:aws:iam::123456789012:role/airbridge-test-site-depot-3-default-tasks"
        )
