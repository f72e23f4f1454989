"""Terraform modules of workers: their format, types, refusals, examples, and the values that the chart gets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.terraform import helm_provider

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "infra/terraform"
CHART = ROOT / "infra/helm/airbridge-worker"
EXAMPLES = sorted(str(each.parent.relative_to(MODULES)) for each in MODULES.glob("*/examples/*/main.tf"))
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n"

pytestmark = pytest.mark.skipif(shutil.which("terraform") is None, reason="needs terraform")


class Terraform:
    """Copy of the modules, with the Helm provider's schema in place of the provider."""

    def __init__(self, root: Path, variables: dict[str, str]) -> None:
        self.modules = root / "infra/terraform"
        self._environment = {**os.environ, **variables, "TF_IN_AUTOMATION": "1", "TF_DATA_DIR": ".data"}

    def run(self, folder: str, *words: str) -> str:
        """Run a command of Terraform in a module; return its output."""
        done = subprocess.run(
            ["terraform", *words],
            cwd=self.modules / folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{folder}: {words}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terraform]:
    root = tmp_path_factory.mktemp("modules")
    shutil.copytree(
        MODULES, root / "infra/terraform", ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*")
    )
    shutil.copytree(CHART, root / "infra/helm/airbridge-worker")
    for example in (root / "infra/terraform").glob("worker-on-a-host/examples/*"):
        (example / "ca.crt").write_text(CERTIFICATE)
        (example / "press-1.pub").write_text("ssh-ed25519 AAAA\n")
    with helm_provider.serving(root) as variables:
        yield Terraform(root, variables)


def test_format_is_terraforms() -> None:
    """`terraform fmt` would change nothing."""
    command = ["terraform", "fmt", "-check", "-diff", "-recursive", str(MODULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stdout)


@pytest.mark.parametrize("module", ["worker-on-a-host", "worker-on-kubernetes"])
def test_refusals_and_values(terraform: Terraform, module: str) -> None:
    """The module is valid, and its own tests pass: what it refuses, and what it hands on."""
    terraform.run(module, "init", "-backend=false")
    terraform.run(module, "validate")
    assert " 0 failed" in terraform.run(module, "test", "-no-color")


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_valid(terraform: Terraform, example: str) -> None:
    """Each example uses what the module and the provider have."""
    terraform.run(example, "init", "-backend=false")
    terraform.run(example, "validate")


def planned_values(terraform: Terraform, given: dict[str, Any]) -> dict[str, Any]:
    """Return the values that the chart gets for variables of the module, its documents merged as Helm merges them."""
    module = "worker-on-kubernetes"
    (terraform.modules / module / "given.auto.tfvars.json").write_text(json.dumps(given))
    try:
        terraform.run(module, "init", "-backend=false")
        terraform.run(module, "plan", "-out", "plan")
        plan = json.loads(terraform.run(module, "show", "-json", "plan"))
    finally:
        (terraform.modules / module / "given.auto.tfvars.json").unlink()
    values: dict[str, Any] = {}
    for document in plan["planned_values"]["outputs"]["values"]["value"]:
        _merge(values, yaml.safe_load(document))
    return values


def _merge(target: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(target.get(name), dict):
            _merge(target[name], value)
        else:
            target[name] = value


SMALLEST = {
    "image": {"repository": "registry.example.com/edge-worker", "digest": f"sha256:{'a' * 64}"},
    "gateway_url": "https://gateway.example.com",
    "region": "factory-7",
}
# The chart's example "everything", as variables.
EVERYTHING = SMALLEST | {
    "image_pull_secrets": ["registry"],
    "gateway_url": "https://gateway.example.com:8443",
    "ca_certificate": CERTIFICATE,
    "pool": "gpu",
    "name_prefix": "cluster-2-",
    "join": {"secret": "airbridge-join"},
    "slots": 8,
    "slot": {"memory_mib": 2048, "cpus": 0.5, "processes": 256, "disk_mib": 4096},
    "resources": {"requests": {"cpu": "4", "memory": "18Gi"}, "limits": {"memory": "18Gi"}},
    "settings": {"prefetch": 2, "task_env": '{"A": "b"}', "journal_fsync": True},
    "extra_env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
    "extra_env_from": [{"secretRef": {"name": "task-secrets"}}],
    "persistence": {"size": "50Gi", "storage_class": "fast"},
    "drain_seconds": 7200,
    "pod_disruption_budget": {"max_unavailable": "20%"},
    "autoscaling": {
        "prometheus": "http://prometheus.monitoring:9090",
        "min_replicas": 0,
        "max_replicas": 40,
        "target_per_slot": 1.5,
    },
    "service_monitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "network_policy": {
        "egress": [
            {
                "to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}],
                "ports": [{"port": 443, "protocol": "TCP"}],
            }
        ]
    },
    "pod_labels": {"team": "plant"},
    "pod_annotations": {"note": "yes"},
    "node_selector": {"gpu": "true"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priority_class_name": "batch",
}
GIVEN: dict[str, dict[str, Any]] = {
    "smallest": SMALLEST | {"ca_config_map": "airbridge-ca", "join": {"secret": "airbridge-join"}},
    "everything": EVERYTHING,
    "cluster": SMALLEST
    | {
        "ca_config_map": "airbridge-ca",
        "join": {"method": "kubernetes", "audience": "airbridge.example.com"},
    },
    "keys": SMALLEST
    | {
        "ca_config_map": "airbridge-ca",
        "join": {"method": "bound_key"},
        "service_account": {"create": False},
    },
}


@pytest.mark.parametrize("example", GIVEN)
def test_chart_takes_the_values(terraform: Terraform, example: str) -> None:
    """The chart's schema accepts what the module makes, and it holds all values of the chart's example."""
    found = planned_values(terraform, GIVEN[example])
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(found)
    wanted = yaml.safe_load((CHART / "ci" / f"{example}.yaml").read_text())
    merged = json.loads(json.dumps(found))
    _merge(merged, wanted)
    assert merged == found


def test_every_value_has_a_variable() -> None:
    """Each value of the chart can be given; extra_values is for values of charts that are newer."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    source = (MODULES / "worker-on-kubernetes/main.tf").read_text()
    given = set(re.findall(r"(?m)^    (\w+) += ", source.partition("given = {")[2]))
    assert set(schema["properties"]) - {"global"} <= given


@pytest.mark.parametrize("module", ["worker-on-a-host", "worker-on-kubernetes"])
def test_readme_lists_variables_and_outputs(module: str) -> None:
    """The README has each variable and output with its description."""
    readme = (MODULES / module / "README.md").read_text()
    for file in ("variables.tf", "outputs.tf"):
        source = (MODULES / module / file).read_text()
        blocks = re.findall(r'(?ms)^(?:variable|output) "(\w+)" \{\n  description = "(.*?)"\n', source)
        assert len(blocks) == len(re.findall(r"(?m)^(?:variable|output) ", source))
        for name, description in blocks:
            text = description.replace('\\"', '"').replace("|", "\\|")
            assert f"| `{name}` | {text} |" in readme
