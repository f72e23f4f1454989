"""What the gateway counts can be read by whoever holds the scope, and by nobody else."""

from __future__ import annotations

from tests.integration.gateway.world import World

METRICS = "/operator/v1/metrics"


def test_requests_are_counted_by_endpoint_and_status(world: World) -> None:
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
