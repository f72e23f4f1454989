"""What the chart's manifests promise, read from those that it was last rendered to."""

from __future__ import annotations

from typing import Any

import pytest
from tests.chart.charts import EXAMPLES, Manifest, digest, manifests, of_kind, snapshot

from airbridge.core import metrics
from airbridge.edge_worker.settings import ENV_PREFIX, WorkerSettings

# Volumes that the restricted profile of the Pod Security Standards allows.
ALLOWED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}

each_example = pytest.mark.parametrize("example", EXAMPLES)


def pod(example: str) -> Manifest:
    found: Manifest = of_kind(example, "StatefulSet")["spec"]["template"]["spec"]
    return found


def environment(example: str) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in pod(example)["containers"][0]["env"]}


@each_example
def test_snapshots_are_of_this_chart(example: str) -> None:
    """The manifests below were rendered from the chart as it is: `make chart` renders them again."""
    assert digest() in snapshot(example).read_text().splitlines()[0], (
        "AIRBRIDGE_ACCEPT_SNAPSHOTS=1 make chart"
    )


@each_example
def test_pods_are_restricted(example: str) -> None:
    """The pod fits the restricted profile of the Pod Security Standards, and its root file system is read-only."""
    spec = pod(example)
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"]
    assert 0 != spec["securityContext"]["runAsUser"]
    assert {"type": "RuntimeDefault"} == spec["securityContext"]["seccompProfile"]
    for volume in spec["volumes"]:
        assert ALLOWED_VOLUMES & volume.keys(), volume
    for container in spec["containers"]:
        context = container["securityContext"]
        assert {"drop": ["ALL"]} == context["capabilities"]
        assert not context["allowPrivilegeEscalation"]
        assert context["readOnlyRootFilesystem"]
    assert spec["automountServiceAccountToken"] is False


@each_example
def test_settings_are_those_of_the_worker(example: str) -> None:
    """Every variable that the chart sets is a setting, and its value is valid."""
    given = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in environment(example).items()
        if name.startswith(ENV_PREFIX)
    }
    assert given.keys() <= WorkerSettings.model_fields.keys()
    name = given.pop("name").replace("$(POD_NAME)", "edge-airbridge-worker-0")
    # Text, as in an environment; what is JSON there is parsed by the source of settings.
    given.pop("task_env", None)
    settings = WorkerSettings.model_validate({**given, "name": name}, strict=False)
    assert "factory-7" == settings.region
    assert "0.0.0.0" == settings.metrics_host


@each_example
def test_worker_may_drain(example: str) -> None:
    """A pod that is to go has the time to finish its tasks, no hook sends a second signal, and its journal is kept."""
    stateful = of_kind(example, "StatefulSet")["spec"]
    assert stateful["template"]["spec"]["terminationGracePeriodSeconds"] >= 3600
    assert "lifecycle" not in stateful["template"]["spec"]["containers"][0]
    assert {"whenDeleted": "Retain", "whenScaled": "Retain"} == stateful[
        "persistentVolumeClaimRetentionPolicy"
    ]
    mounts = {
        each["name"]: each["mountPath"]
        for each in stateful["template"]["spec"]["containers"][0]["volumeMounts"]
    }
    claims = {each["metadata"]["name"] for each in stateful["volumeClaimTemplates"]}
    state = environment(example)[f"{ENV_PREFIX}STATE_DIR"]
    assert any(state.startswith(mounts[claim]) for claim in claims)
    assert of_kind(example, "PodDisruptionBudget")["spec"]["maxUnavailable"] in {1, "20%"}


def test_scaling_follows_a_metric_that_exists() -> None:
    """The query is of a metric that the gateway exposes with these labels; the target is a worker's slots times that of a slot."""
    stateful, scaled = of_kind("everything", "StatefulSet"), of_kind("everything", "ScaledObject")["spec"]
    (trigger,) = scaled["triggers"]
    query = trigger["metadata"]["query"]
    named = next(each for each in metrics.ALL if each.name in query)
    assert {"region", "pool", "state"} == set(named.labels)
    assert 'region="factory-7",pool="gpu"' in query
    assert ("AverageValue", "12") == (trigger["metricType"], trigger["metadata"]["threshold"])
    assert stateful["metadata"]["name"] == scaled["scaleTargetRef"]["name"]
    assert "replicas" not in stateful["spec"], "the chart and the autoscaler would both set it"
    assert all(isinstance(each, str) for each in trigger["metadata"].values())


@each_example
def test_network_is_closed_but_for_what_is_named(example: str) -> None:
    """Nobody but Prometheus reaches a pod; a pod reaches DNS, the gateway's port and what the values name."""
    spec = of_kind(example, "NetworkPolicy")["spec"]
    assert ["Ingress", "Egress"] == spec["policyTypes"]
    assert [["metrics"]] == [[port["port"] for port in rule["ports"]] for rule in spec["ingress"]]
    ports = [[port["port"] for port in rule["ports"]] for rule in spec["egress"]]
    assert [[53, 53], [8443 if example == "everything" else 443], [443]] == ports
    labels = of_kind(example, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()


def test_monitor_finds_the_service() -> None:
    """ServiceMonitor, Service and pods agree on labels and on the port's name."""
    monitor, service = of_kind("everything", "ServiceMonitor"), of_kind("everything", "Service")
    labels = of_kind("everything", "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert {each["port"] for each in monitor["spec"]["endpoints"]} == {
        each["name"] for each in service["spec"]["ports"]
    }
    assert "prometheus" == monitor["metadata"]["labels"]["release"]


@each_example
def test_kinds_are_those_that_are_documented(example: str) -> None:
    """Without KEDA and the Prometheus operator the chart installs nothing of theirs."""
    kinds = {each["kind"] for each in manifests(snapshot(example).read_text())}
    own = {"StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    account = {"ServiceAccount"} if example != "keys" else set()
    more = {"ConfigMap", "ScaledObject", "ServiceMonitor"} if example == "everything" else set()
    assert own | account | more == kinds


def test_pods_join_by_the_clusters_token() -> None:
    """With method kubernetes a pod has a short-lived token for the gateway's audience alone, of an account without rights."""
    (volume,) = (each for each in pod("cluster")["volumes"] if each["name"] == "join")
    (source,) = volume["projected"]["sources"]
    token = source["serviceAccountToken"]
    assert ("airbridge.example.com", 600) == (token["audience"], token["expirationSeconds"])
    assert volume["projected"]["defaultMode"] == 0o400
    given = environment("cluster")
    (mount,) = (each for each in pod("cluster")["containers"][0]["volumeMounts"] if each["name"] == "join")
    assert f"{mount['mountPath']}/{token['path']}" == given[f"{ENV_PREFIX}JOIN_TOKEN_FILE"]
    assert "kubernetes" == given[f"{ENV_PREFIX}JOIN_METHOD"]
    account = of_kind("cluster", "ServiceAccount")
    assert account["metadata"]["name"] == pod("cluster")["serviceAccountName"]
    assert account["automountServiceAccountToken"] is False


def test_pods_join_by_their_own_keys() -> None:
    """With method bound_key a pod needs no Secret: an operator binds the key on its volume."""
    assert "bound_key" == environment("keys")[f"{ENV_PREFIX}JOIN_METHOD"]
    assert f"{ENV_PREFIX}JOIN_TOKEN_FILE" not in environment("keys")
    assert not [each for each in pod("keys")["volumes"] if each["name"] == "join"]
    assert "default" == pod("keys")["serviceAccountName"]


@each_example
def test_stuck_worker_is_ended_soon(example: str) -> None:
    """A worker that failed its probes does not drain: it is not given the hours that a draining one has."""
    (container,) = pod(example)["containers"]
    for probe in ("startupProbe", "livenessProbe"):
        assert 30 == container[probe]["terminationGracePeriodSeconds"]
