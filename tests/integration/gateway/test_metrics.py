"""The gateway's metrics are readable with the scope for them, and not without."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from tests.integration.gateway.world import CATALOGUE, World, finished, lease, record
from tests.support.embedded_metrics import extract
from tests.support.platform import wait_for

from airbridge.control_plane.gateway.background.metrics import DatabaseGauges
from airbridge.control_plane.gateway.heartbeat.pace import Pace
from airbridge.control_plane.observability import cloudwatch
from airbridge.control_plane.observability.alarms import ALERTS
from airbridge.control_plane.observability.cloudwatch_emf import CloudWatchEmf
from airbridge.core import metrics
from airbridge.core.metrics import Source
from airbridge.core.protocol import EdgeEvent

METRICS = "/operator/v1/metrics"


def test_requests_are_counted_by_endpoint(world: World) -> None:
    """Enrolments show in Prometheus' text format."""
    world.worker()
    with world.operator(world.access_token("metrics:read")) as operator:
        answer = operator.get(METRICS)
    assert 200 == answer.status_code
    assert 'airbridge_gateway_requests_total{endpoint="enrol",status="200"}' in answer.text
    assert 'airbridge_gateway_request_seconds_bucket{endpoint="enrol"' in answer.text


def test_metrics_need_their_scope(world: World) -> None:
    """No token is 401, a token for something else is 403."""
    for token, status in ((None, 401), (world.access_token("workers:read"), 403)):
        with world.operator(token) as operator:
            assert status == operator.get(METRICS).status_code


def families_of(world: World) -> dict[str, Metric]:
    """Return the metric families that the gateway exposes, by name."""
    with world.operator(world.access_token("metrics:read")) as operator:
        return {family.name: family for family in text_string_to_metric_families(operator.get(METRICS).text)}


def test_scrape_of_slow_database_delays_no_other(world: World) -> None:
    """While a scrape waits for the database, workers and operators are served."""
    worker, token = world.worker(), world.access_token("metrics:read", "tokens:read")
    registry = world.gateway.metrics._registry
    [gauges] = [each for each in registry._collector_to_names if isinstance(each, DatabaseGauges)]
    gauges._read_at = float("-inf")
    with (
        world.operator(token) as operator,
        world.metadata.session() as session,
        ThreadPoolExecutor(1) as threads,
    ):
        # The gauges read it; heartbeats and tokens do not.
        session.execute(text("LOCK TABLE airbridge_limit_start IN ACCESS EXCLUSIVE MODE"))
        scrape = threads.submit(operator.get, METRICS, timeout=60)
        try:
            with pytest.raises(TimeoutError):
                scrape.result(timeout=1)
            worker.client.timeout = 5
            assert worker.try_beat().status_code == 200
            assert operator.get("/operator/v1/tokens", timeout=5).status_code == 200
        finally:
            session.rollback()
        assert scrape.result(timeout=10).status_code == 200


def test_overloaded_gateway_tells_longer_interval(world: World) -> None:
    """Workers of a gateway with a backlog of heartbeats are told a longer interval, and the metrics show it."""
    registry = world.gateway.metrics._registry
    [pace] = [each for each in registry._collector_to_names if isinstance(each, Pace)]
    usual = pace.interval_seconds
    worker = world.worker()
    assert worker.beat().interval_seconds == usual
    pace._behind_since = float("-inf")
    pace.record(5_000)
    told = worker.beat().interval_seconds
    [sample] = families_of(world)["airbridge_gateway_heartbeat_interval_seconds"].samples
    assert told == sample.value > usual


def _states(families: dict[str, Metric]) -> set[str]:
    """The states that there are work items in."""
    return {
        label
        for sample in families["airbridge_work_items"].samples
        if sample.value
        for label in sample.labels.values()
    }


def test_gateway_exposes_defined_metrics(world: World) -> None:
    """Exactly the defined metrics, with their kinds, once there is work and a worker; and they count what happens."""
    granted, waiting = world.items(2)
    worker = world.worker()
    grant = worker.grant(granted)
    xcom = f"xcoms/{grant.ti['dag_id']}/{grant.ti['run_id']}/{grant.ti['task_id']}/moved"
    worker.exchange(record(grant, 1, "POST", xcom, '"value"'))
    worker.exchange(finished(grant, 2))
    worker.exchange(finished(grant.model_copy(update={"epoch": 7}), 3))
    worker.beat(events=(EdgeEvent(uid=uuid4(), event="link.cut", at=datetime.now(UTC)),))
    # Metrics of the ledger are cached for a few seconds.
    wait_for(lambda: "placed" in _states(families_of(world)), "the waiting item to be counted")
    families = families_of(world)
    mine = {each.name.removesuffix("_total"): each for each in metrics.ALL if each.source is Source.GATEWAY}
    assert set(families) == set(mine)
    assert {name: str(each.kind) for name, each in mine.items()} == {
        name: family.type for name, family in families.items()
    }
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values["airbridge_claims_total", "default", "eu-west-1"] >= 1
    assert values["airbridge_refusals_total", "eu-west-1", "report", "stale_epoch"] >= 1
    assert values["airbridge_report_delay_seconds_count", "eu-west-1"] >= 1
    assert values["airbridge_edge_events_total", "eu-west-1"] >= 1
    assert values["airbridge_work_items", "default", "eu-west-1", "placed"] >= 1
    assert values["airbridge_workers", "default", "eu-west-1", "serving"] >= 1
    assert waiting


def test_missing_airflow_metrics_are_emitted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, end and duration of a task go through Airflow's own metrics."""
    from airflow.stats import Stats

    said: list[tuple[str, str]] = []

    class Recorder:
        def incr(
            self, stat: str, count: int = 1, rate: int = 1, *, tags: dict[str, str] | None = None
        ) -> None:
            said.append(("incr", stat))

        def timing(self, stat: str, dt: float, *, tags: dict[str, str] | None = None) -> None:
            said.append(("timing", stat))

        def __getattr__(self, name: str) -> Any:
            return lambda *_args, **_more: nullcontext()

    monkeypatch.setattr(Stats, "instance", Recorder())
    [item] = world.items()
    worker = world.worker()
    worker.exchange(finished(worker.grant(item), 1))
    row = world.row(item)
    task = f"{row.dag_id}.{row.task_id}"
    assert {
        ("incr", f"ti.start.{task}"),
        ("incr", f"ti.finish.{task}.success"),
        ("incr", "ti_successes"),
        ("timing", f"dag.{task}.duration"),
        ("incr", "airbridge.claims"),
    } <= set(said)


def _samples(world: World) -> dict[tuple[str, ...], float]:
    """Values by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families_of(world).values()
        for sample in family.samples
    }


def test_repeated_requests_count_once(world: World) -> None:
    """A heartbeat's events, a claim and a report that are sent again, because their answer was lost, are counted as one."""
    [item] = world.items(region="us-east-1")
    worker = world.worker("us-east-1")
    before = _samples(world)
    envelope = world.envelope(item)
    [grant], [_] = (worker.claim(envelope).grants for _ in range(2))
    ended = EdgeEvent(
        uid=uuid4(),
        event="task.ended",
        at=datetime.now(UTC),
        item_id=grant.item_id,
        epoch=grant.epoch,
        detail={"log_bytes": 100},
    )
    foreign = ended.model_copy(update={"uid": uuid4(), "epoch": 7})
    said = finished(grant, 1)
    for _ in range(2):
        assert worker.beat(lease(grant), events=(ended, foreign)).events_taken == 2
    for _ in range(2):
        worker.exchange(said)
    after = _samples(world)

    def grew(*key: str) -> float:
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert grew("airbridge_moved_bytes_total", "default", "log", "us-east-1") == 100
    assert grew("airbridge_edge_events_total", "us-east-1") == 1
    assert grew("airbridge_claims_total", "default", "us-east-1") == 1
    assert grew("airbridge_report_delay_seconds_count", "us-east-1") == 1


def test_worker_side_rejections_are_counted(world: World) -> None:
    """A forged message never becomes a claim: the worker reports it, and the alert ForgedOrBrokenMessages uses that count."""
    rejected = [
        EdgeEvent(uid=uuid4(), event="message.rejected", at=datetime.now(UTC), detail={"reason": reason})
        for reason in ("bad_signature", "bad_signature", "of_its_own_making")
    ]
    before = _refusals(world)
    world.worker().beat(events=tuple(rejected))
    assert {"bad_signature": 2.0} == {
        reason: count - before.get(reason, 0.0)
        for reason, count in _refusals(world).items()
        if count != before.get(reason, 0.0)
    }


def _alarmed(world: World, name: str) -> float:
    """Sum of the series that an alarm on a counter is about."""
    [alert] = [each for each in ALERTS if each.name == name]
    return sum(
        sample.value
        for sample in families_of(world)[alert.metric.name.removesuffix("_total")].samples
        if all(sample.labels[label] in values for label, values in alert.where.items())
    )


def test_stale_message_is_no_late_result(world: World) -> None:
    """The old message of an item that was sent again is refused, as it should be; only refused reports raise LateResultsRefused."""
    first, second = world.items(2)
    worker = world.worker()
    before = _alarmed(world, "LateResultsRefused")
    [refusal] = worker.claim(world.envelope(first, epoch=7)).refusals
    assert (refusal.reason, before) == ("stale_epoch", _alarmed(world, "LateResultsRefused"))
    worker.exchange(finished(worker.grant(second).model_copy(update={"epoch": 7}), 1))
    assert before + 1 == _alarmed(world, "LateResultsRefused")


def _refusals(world: World) -> dict[str, float]:
    """Refusals by reason."""
    samples = (
        families_of(world)["airbridge_refusals"].samples if "airbridge_refusals" in families_of(world) else []
    )
    found: dict[str, float] = {}
    for sample in samples:
        found[sample.labels["reason"]] = found.get(sample.labels["reason"], 0.0) + sample.value
    return found


def test_cloudwatch_alarms_match_log_metrics(world: World) -> None:
    """The embedded metric format of a gateway with a worker, work and refusals has each defined metric, by each defined set of dimensions."""
    granted, _ = world.items(2)
    worker = world.worker()
    grant = worker.grant(granted)
    xcom = f"xcoms/{grant.ti['dag_id']}/{grant.ti['run_id']}/{grant.ti['task_id']}/moved"
    worker.exchange(record(grant, 1, "POST", xcom, '"value"'))
    worker.exchange(finished(grant, 2))
    worker.exchange(finished(grant.model_copy(update={"epoch": 7}), 3))
    worker.beat(events=(EdgeEvent(uid=uuid4(), event="link.cut", at=datetime.now(UTC)),))
    refused = world.worker()
    refused.present(None, "")
    assert refused.post("enrol", refused.enrolment("abj_unknown")).status_code == 403
    world.gateway.metrics.audit_fault("truncated")
    world.gateway.metrics.break_glass("worker.revoke")
    wanted = {
        (name, tuple(sorted(each))) for name, each_of in cloudwatch.definition()["published"].items() for each in each_of
    }  # fmt: skip
    known: list[Any] = []

    def complete() -> bool:
        # Heartbeats are written in batches, after they are answered; a worker that sends none is soon no live one.
        worker.beat()
        # A new one each time: counters come with their increase since the lines before, and the gateway writes lines, too.
        emf = CloudWatchEmf(world.gateway.metrics, "AirBridge", lambda: datetime.now(UTC))
        known[:] = extract(json.loads(json.dumps(line)) for line in emf.lines())
        return wanted == {(name, tuple(label for label, _ in where)) for _, name, where in known}

    wait_for(complete, f"exactly these metrics: {sorted(wanted)}", 60)
    places = {(region.name, pool.name) for region in CATALOGUE.regions for pool in region.pools}
    ages = {where for _, name, where in known if name == metrics.QUEUE_AGE.name}
    assert {(("pool", pool), ("region", region)) for region, pool in places} <= ages
