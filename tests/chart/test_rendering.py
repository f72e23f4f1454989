"""The chart, rendered, linted and validated by Helm itself: `make chart`, which installs Helm's library."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.chart.charts import CHART, EXAMPLES, digest, manifests, snapshot, values

helm = pytest.importorskip("helm_python", reason="make chart installs it")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="make chart installs it")

# The oldest version that the chart claims to support, and a recent one.
VERSIONS = ("1.27", "1.34")
# Kinds of other projects, whose schemas come with them.
FOREIGN = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}
ACCEPT = "AIRBRIDGE_ACCEPT_SNAPSHOTS"


def render(wanted: dict[str, Any]) -> str:
    """Return the manifests for values, as they would be installed."""
    chart = helm.Chart.load(CHART)
    chart.validate_schema(wanted)
    rendered = chart.render(wanted, name="edge", namespace="airflow")
    parts = [
        text.strip() for path, text in sorted(rendered.items()) if path.endswith(".yaml") and text.strip()
    ]
    return "\n---\n".join(parts) + "\n"


@pytest.mark.parametrize("example", EXAMPLES)
def test_chart_passes_helm_lint(example: str) -> None:
    """`helm lint --strict` finds nothing, in the chart and in what the example's values make of it."""
    report = helm.lint(CHART, values(example), strict=True)
    assert [] == report["errors"]
    assert [] == [each for each in report["messages"] if each["severity"] > 1]


@pytest.mark.parametrize("example", EXAMPLES)
def test_manifests_are_those_of_the_snapshot(example: str) -> None:
    """A change of the chart shows as a change of manifests: AIRBRIDGE_ACCEPT_SNAPSHOTS=1 takes it over."""
    text = f"# Of the chart with the digest {digest()}.\n{render(values(example))}"
    if os.environ.get(ACCEPT):
        snapshot(example).write_text(text)
    assert snapshot(example).read_text() == text


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("example", EXAMPLES)
def test_manifests_fit_the_schemas_of_kubernetes(example: str, version: str) -> None:
    """Every manifest of Kubernetes' own kinds has the fields that the API server knows, and no others."""
    checked = 0
    for manifest in manifests(render(values(example))):
        if manifest["apiVersion"] not in FOREIGN:
            kubernetes_validate.validate(manifest, version, strict=True)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": {"repository": "worker", "digest": "latest"}}, "digest"),
        ({"gateway": {"url": "http://gateway", "caConfigMap": "ca"}}, "url"),
        ({"gateway": {"url": "https://gateway"}}, "gateway"),
        ({"region": "Factory 7"}, "region"),
        ({"replica": 3}, "replica"),
        ({"settings": {"join_token_file": "token"}}, "join_token_file"),
        ({"autoscaling": {"enabled": True}}, "prometheus"),
        ({"slot": {"memoryMiB": "2GiB"}}, "memoryMiB"),
        ({"joinSecret": ""}, "joinSecret"),
        ({"join": {"method": "kubernetes"}, "joinSecret": ""}, "audience"),
        ({"join": {"method": "kubernetes", "audience": "a"}}, "joinSecret"),
        (
            {"join": {"method": "kubernetes", "audience": "a", "expirationSeconds": 60}, "joinSecret": ""},
            "expirationSeconds",
        ),
        ({"join": {"method": "aws_iam"}}, "method"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, Any], named: str) -> None:
    """The schema refuses a tag for a digest, a misspelt value, a setting that the chart sets itself, and names it."""
    with pytest.raises(helm.HelmValuesError, match=named):
        helm.Chart.load(CHART).validate_schema({**values("smallest"), **change})
