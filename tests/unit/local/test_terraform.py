"""The outputs of a deploy on the emulator, as local mode reads them, and the processes' roles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airbridge.control_plane.local import plan
from airbridge.control_plane.local.keys import Keys
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.services import credentials, terraform
from airbridge.core.exceptions import ConfigurationError

ARN = "arn:aws:iam::123456789012:role/"
ENDPOINT = "http://127.0.0.1:5600"


def region(name: str, endpoint: str = ENDPOINT) -> str:
    return (
        f'[[region]]\nname = "{name}"\nlog_bucket = "{name}-logs"\nbundle_bucket = "{name}-bundles"\n'
        f'endpoint_url = "{endpoint}"\ndata = ["s3://{name}-data/a", "s3://{name}-data/b"]\n'
        f'[[region.pool]]\nname = "default"\nqueue_url = "{ENDPOINT}/1/{name}"\nslots = 4\n'
    )


def outputs(**more: Any) -> dict[str, Any]:
    return {
        "control-plane": {"role_arns": {name: ARN + name for name in terraform.SERVICES}},
        "edge-eu-west-1": {"worker_role_arns": {"default": ARN + "eu-worker"}},
        "edge-us-east-1": {"worker_role_arns": {"default": ARN + "us-worker"}},
        **more,
    }


def write(directory: Path, made: Any, regions: str = region("eu-west-1") + region("us-east-1")) -> Path:
    (directory / terraform.OUTPUTS).write_text(json.dumps(made))
    (directory / terraform.CATALOGUE).write_text(f'home_region = "us-east-1"\n{regions}')
    return directory


def test_deployed_regions_and_buckets(tmp_path: Path) -> None:
    """Regions and buckets are read from the outputs; a bucket with two prefixes is one bucket."""
    deployed = terraform.read(write(tmp_path, outputs()))
    assert ["us-east-1", "eu-west-1"] == [each.name for each in deployed.regions]
    assert {"us-east-1": ("us-east-1-data",), "eu-west-1": ("eu-west-1-data",)} == deployed.data_buckets
    assert (ENDPOINT, 7) == (deployed.endpoint_url, len(deployed.roles))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "holds list; it must hold outputs by stack"),
        (outputs(**{"control-plane": {}}), "control-plane has no output 'role_arns'"),
        (
            outputs(**{"control-plane": {"role_arns": {"gateway": "g", "scheduler": "s", "triggerer": "t"}}}),
            "role_arns has no role for api-server, dag-processor",
        ),
        (
            outputs(**{"edge-eu-west-1": {"worker_role_arns": {}}}),
            "edge-eu-west-1, .* no role for pool default",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, made: Any, message: str) -> None:
    """The error names the file, the stack and the missing output."""
    with pytest.raises(ConfigurationError, match=rf"outputs\.json.*{message}"):
        terraform.read(write(tmp_path, made))


def test_missing_deployment_is_named(tmp_path: Path) -> None:
    """The error names the command that makes it."""
    with pytest.raises(ConfigurationError, match=r"outputs\.json cannot be read: .*'make infra-local'"):
        terraform.read(tmp_path)


def test_catalogue_requires_emulator(tmp_path: Path) -> None:
    """Local mode never runs against AWS: every region names the same emulator."""
    mixed = region("us-east-1") + region("eu-west-1", "http://elsewhere:1")
    with pytest.raises(ConfigurationError, match=r"must have the same endpoint_url, an emulator's"):
        terraform.read(write(tmp_path, outputs(), mixed))


def applied(directory: Path, **choices: Any) -> plan.Plan:
    deployed = terraform.read(write(directory, outputs()))
    grants = credentials.Grants.make(deployed.endpoint_url, deployed.roles, deployed.data_buckets)
    options = Options(directory=directory, regions=deployed.regions, terraform=directory, **choices)
    keys = Keys(ports={name: 1 + index for index, name in enumerate(plan.PORTS)})
    return plan.Plan(options, StateDir(directory), keys, {}, False, plan.Applied(deployed, grants))


def test_each_process_has_own_role(tmp_path: Path) -> None:
    """Each process has a token of its own for the credentials endpoint, one per role; none has an access key."""
    made = applied(tmp_path, schedulers=2)
    held = {
        each.name: made.applied.grants.role(each.env["AWS_CONTAINER_AUTHORIZATION_TOKEN"])  # type: ignore[union-attr]  # it is applied
        for each in plan.components(made)
        if "AWS_CONTAINER_AUTHORIZATION_TOKEN" in each.env
    }
    assert held == {
        **{name: ARN + name for name in terraform.SERVICES},
        "scheduler-2": ARN + "scheduler",
        "worker-us-east-1-default-1": ARN + "us-worker",
        "worker-eu-west-1-default-1": ARN + "eu-worker",
    }
    assert not [each.name for each in plan.components(made) if "AWS_ACCESS_KEY_ID" in each.env]


def test_tasks_inherit_worker_role(tmp_path: Path) -> None:
    """DAG code finds the credentials that it would find on a host of the region, and the emulator's address."""
    made = applied(tmp_path)
    worker = next(each for each in plan.components(made) if each.name == "worker-eu-west-1-default-1")
    task = json.loads(worker.env["AIRBRIDGE_WORKER_TASK_ENV"])
    token = worker.env["AWS_CONTAINER_AUTHORIZATION_TOKEN"]
    assert (token, ENDPOINT) == (task["AWS_CONTAINER_AUTHORIZATION_TOKEN"], task["AWS_ENDPOINT_URL"])


def test_credentials_endpoint_replaces_emulator(tmp_path: Path) -> None:
    """With a deployment the credentials endpoint takes the emulator's place among the components."""
    names = [each.name for each in plan.components(applied(tmp_path))]
    assert ("credentials" in names, "aws" in names) == (True, False)


def test_role_tokens_are_private(tmp_path: Path) -> None:
    """Other users cannot read the file; an unknown token stands for nothing."""
    grants = credentials.Grants.make(ENDPOINT, ["a", "b"], {})
    grants.write(tmp_path / "grants.json")
    assert 0o600 == (tmp_path / "grants.json").stat().st_mode & 0o777
    assert ("b", None, None) == (grants.role(grants.token("b")), grants.role(""), grants.role("ü"))
