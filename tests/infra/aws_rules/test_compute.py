"""Rules of EC2, Auto Scaling and RDS that no emulator checks; sources in airbridge.infra.aws_facts."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.infra.conftest import ENVIRONMENTS, Stacks, read

from airbridge.infra import aws_facts
from airbridge.infra.app import synthesise
from airbridge.infra.constructs.compute import worker_image
from airbridge.infra.constructs.compute.worker_image import WorkerImage
from airbridge.infra.settings import Settings


def resources(stacks: Stacks, kind: str, section: str = "resource") -> Iterator[tuple[str, dict[str, Any]]]:
    for stack, content in stacks.items():
        for resource in content.get(section, {}).get(kind, {}).values():
            yield f"{stack}/{resource['//']['metadata']['path']}", resource


def scripts(stacks: Stacks) -> list[str]:
    templates = resources(stacks, "aws_launch_template")
    return [base64.b64decode(one["user_data"]).decode() for _, one in templates]


def test_boot_scripts_are_resolved(prod: Stacks) -> None:
    """Terraform does not look into base64: a value that it would fill in stays the name of a token there."""
    for script in scripts(prod):
        assert [] == [line for line in script.splitlines() if "TfToken[" in line]


def test_database_version_can_be_created(prod: Stacks) -> None:
    """RDS retires minor versions, and then creates none of them: only the major version is named."""
    [(path, database)] = resources(prod, "aws_db_instance")
    assert aws_facts.POSTGRES == database["engine_version"], path
    assert database["auto_minor_version_upgrade"] is True


@pytest.mark.parametrize("environment", ["prod", "local"])
def test_database_leaves_a_snapshot(environment: str, request: pytest.FixtureRequest) -> None:
    """Every destroyed database leaves a snapshot under a name of its own, and its automated backups."""
    [(_, database)] = resources(request.getfixturevalue(environment), "aws_db_instance")
    assert database["skip_final_snapshot"] is False
    assert "timestamp()" in database["final_snapshot_identifier"]
    assert "final_snapshot_identifier" in database["lifecycle"]["ignore_changes"]
    assert database["delete_automated_backups"] is False


def test_machine_images_were_released(prod: Stacks) -> None:
    """Each parameter names a release of the public change log, of the right architecture and kind."""
    names = {path: one["name"] for path, one in resources(prod, "aws_ssm_parameter", "data")}
    assert names
    for path, name in names.items():
        known = any(f"-2023.0.{release}-" in name for release in aws_facts.ECS_AMI_RELEASES)
        assert known, f"{path}: {name} is of no known release"
    assert any("/gpu/" in name for name in names.values())


def test_hook_outlasts_the_heartbeats_of_a_drain(tmp_path: Path) -> None:
    """The hook is set when a group is made, so it does not follow from `drain_seconds`: a draining instance is in time for it.

    https://docs.aws.amazon.com/autoscaling/ec2/userguide/lifecycle-hooks.html: the hook ends after its heartbeat timeout, or 100 times that.
    """
    text = (ENVIRONMENTS / "dev.toml").read_text()
    text = text.replace('name = "default"\n', 'name = "default"\ndrain_seconds = 120\n', 1)
    (tmp_path / "dev.toml").write_text(text)
    stacks = read(synthesise(Settings("dev", tmp_path), tmp_path / "out"))
    [beat] = {int(each) for script in scripts(stacks) for each in re.findall(r"while sleep (\d+)", script)}
    for path, group in resources(stacks, "aws_autoscaling_group"):
        [hook] = group["initial_lifecycle_hook"]
        assert 2 * beat < hook["heartbeat_timeout"], path
        assert 7_200 <= 100 * hook["heartbeat_timeout"], path


def test_tasks_are_always_confined(prod: Stacks) -> None:
    """Every machine image offers Landlock, so a worker that finds none refuses to start in place of a warning."""
    assert all(release >= aws_facts.LANDLOCK_SINCE for release in aws_facts.ECS_AMI_RELEASES)
    for script in scripts(prod):
        assert "AIRBRIDGE_WORKER_TASK_SANDBOX=require" in script.splitlines()


def test_rolled_back_templates_name_an_image(prod: Stacks) -> None:
    """Auto Scaling rolls an instance refresh back only if the launch template names no SSM parameter."""
    groups = [one for _, one in resources(prod, "aws_autoscaling_group")]
    assert all(one["instance_refresh"]["preferences"]["auto_rollback"] for one in groups)
    images = [one["image_id"] for _, one in resources(prod, "aws_launch_template")]
    assert images
    assert not any(image.startswith("resolve:") for image in images)


def test_gpu_pools_get_the_devices(prod: Stacks) -> None:
    """Containers of GPU pools run with `--gpus all`, without which Docker gives them none; other pools have no such runtime."""
    for _, template in resources(prod, "aws_launch_template"):
        script = base64.b64decode(template["user_data"]).decode()
        assert ("--gpus all" in script) == template["name"].endswith("-gpu"), template["name"]


def test_boot_survives_slow_pulls(prod: Stacks) -> None:
    """A large pull takes longer than systemd's 90 s, and a registry that is away for a while is tried again."""
    for script in scripts(prod):
        assert "TimeoutStartSec=900" in script
        assert "StartLimitIntervalSec=0" in script


class Host:
    """A host whose programs are scripts that write down how they were called."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.bin = directory / "bin"
        self.calls = directory / "calls"
        self.bin.mkdir()
        for folder in ("usr/local/bin", "etc/systemd/system"):
            (self.root / folder).mkdir(parents=True)
        for name in ("dnf", "systemctl", "chown", "aws"):
            self.program(name)
        self.program("curl", "echo i-0123456789")

    def program(self, name: str, body: str = "") -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.calls}\n{body}\n')
        path.chmod(0o755)

    def boot(self, ca_sha256: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the user data with its paths below `root`."""
        script = WorkerImage(
            image="registry/edge-worker@sha256:0",
            registry="registry",
            region="eu-west-1",
            group="pool",
            hook="drain",
            log_group="/airbridge/pool",
            bundle_bucket="bundles",
            drain_seconds=60,
            settings={"AIRBRIDGE_WORKER_POOL": "default"},
            task_role_arn="arn:aws:iam::123456789012:role/tasks",
            ca_sha256=ca_sha256,
        ).script()
        for path in ("/etc/", "/usr/local/bin/", "/var/lib/", "/run/"):
            script = script.replace(f" {path}", f" {self.root}{path}")
        return self.run(script)

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        environment |= {"AIRBRIDGE_RETRY_SECONDS": "0", "AIRBRIDGE_ONCE": "1"}
        return subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    def called(self, beginning: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(beginning)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_boot_starts_the_worker(host: Host) -> None:
    """The units are written and started, and the worker is named after its instance."""
    booted = host.boot()
    assert 0 == booted.returncode, booted.stderr
    assert "AIRBRIDGE_WORKER_NAME=i-0123456789" in (host.root / "etc/airbridge/worker.env").read_text()
    assert ["systemctl start airbridge-worker"] == host.called("systemctl start airbridge-worker")


def test_credentials_reach_agent_and_tasks(host: Host) -> None:
    """The agent's file is its own; tasks read another, with the credentials of their role under the instance's name."""
    assert 0 == host.boot().returncode
    (host.root / "run/airbridge-task").mkdir(parents=True)
    host.program("aws", 'echo "{\\"from\\": \\"$1 $2\\"}"')
    brought = host.run((host.root / "usr/local/bin/airbridge-credentials").read_text())
    assert 0 == brought.returncode, brought.stderr
    agent, tasks = host.root / "var/lib/airbridge/aws", host.root / "run/airbridge-task"
    assert '{"from": "configure export-credentials"}' == (agent / "credentials.json").read_text().strip()
    assert '{"from": "sts assume-role"}' == (tasks / "credentials.json").read_text().strip()
    modes = [stat.S_IMODE((each / "credentials.json").stat().st_mode) for each in (agent, tasks)]
    assert [0o400, 0o444] == modes
    [assumed] = host.called("aws sts assume-role")
    assert "--role-arn arn:aws:iam::123456789012:role/tasks" in assumed
    assert "--role-session-name i-0123456789" in assumed


def test_failed_answer_keeps_credentials(host: Host) -> None:
    """An answer that fails half-way does not replace credentials that still work."""
    assert 0 == host.boot().returncode
    kept = host.root / "var/lib/airbridge/aws/credentials.json"
    kept.write_text("old")
    host.program("aws", "echo '{'; exit 1")
    assert 0 != host.run((host.root / "usr/local/bin/airbridge-credentials").read_text()).returncode
    assert "old" == kept.read_text()


def test_tasks_cannot_reach_metadata(prod: Stacks) -> None:
    """The instance's role proves an `aws_iam` join: metadata answers end at the host, and a rule closes the way."""
    for path, template in resources(prod, "aws_launch_template"):
        options = template["metadata_options"]
        assert ("required", 1) == (options["http_tokens"], options["http_put_response_hop_limit"]), path
        script = base64.b64decode(template["user_data"]).decode()
        assert "--network" not in script, path
        assert "DOCKER-USER -d 169.254.169.254 -j REJECT" in script, path


def test_task_role_has_no_work(prod: Stacks) -> None:
    """Task code reads the region's data, and nothing of the worker's: no queue, no logs, no snapshots."""
    actions: dict[str, set[str]] = {}
    for path, policy in resources(prod, "aws_iam_role_policy"):
        for statement in json.loads(policy["policy"])["Statement"]:
            listed = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            actions.setdefault(path.rsplit("/", 1)[0], set()).update(listed)
    tasks = {path: found for path, found in actions.items() if path.endswith("-task-role")}
    assert tasks
    assert all(found <= {"s3:GetObject", "s3:ListBucket"} for found in tasks.values()), tasks
    workers = {path: found for path, found in actions.items() if "sqs:ReceiveMessage" in found}
    assert workers
    assert all("sts:AssumeRole" in found for found in workers.values())


def test_only_the_worker_assumes_the_task_role(prod: Stacks) -> None:
    """A task role trusts the role of its own pool's workers."""
    roles = [(path, one) for path, one in resources(prod, "aws_iam_role") if path.endswith("-task-role/role")]
    assert roles
    for path, role in roles:
        [trust] = json.loads(role["assume_role_policy"])["Statement"]
        assert "sts:AssumeRole" == trust["Action"]
        assert path.split("/")[-2].removesuffix("-task-role") in str(trust["Principal"]["AWS"]), path


def test_tasks_know_their_region(prod: Stacks) -> None:
    """A client of boto3 in a task works in the worker's region, with the task role's credentials."""
    for path, template in resources(prod, "aws_launch_template"):
        script = base64.b64decode(template["user_data"]).decode()
        [line] = [each for each in script.splitlines() if each.startswith("AIRBRIDGE_WORKER_TASK_ENV=")]
        given = json.loads(line.split("=", 1)[1])
        assert path.startswith(f"edge-{given['AWS_REGION']}/")
        assert given["AWS_REGION"] == given["AWS_DEFAULT_REGION"]
        assert worker_image.TASK_AWS_CONFIG == given["AWS_CONFIG_FILE"]


def test_boot_waits_for_the_certificate(host: Host, tmp_path: Path) -> None:
    """The CA's certificate may be published minutes after the region's first instance boots."""
    count = tmp_path / "count"
    host.program("aws", f'echo x >> {count}; [ "$1" != s3 ] || [ $(wc -l < {count}) -ge 4 ]')
    booted = host.boot()
    assert 0 == booted.returncode, booted.stderr
    assert 4 == len(host.called("aws s3 cp"))
    assert host.called("aws autoscaling") == []


def test_foreign_certificate_ends_the_boot(host: Host) -> None:
    """A CA that somebody put into the bucket is refused by the digest that the environment names."""
    host.program("aws", f'[ "$1" != s3 ] || echo foreign > {host.root}/etc/airbridge/ca.crt')
    genuine = hashlib.sha256(b"foreign\n").hexdigest()
    assert 0 == host.boot(ca_sha256=genuine).returncode
    host.calls.unlink()
    refused = host.boot(ca_sha256="0" * 64)
    assert refused.returncode != 0
    assert "ca.crt" in refused.stdout + refused.stderr
    assert host.called("systemctl start") == []


def test_failed_boot_asks_to_be_replaced(host: Host) -> None:
    """EC2's health checks do not see a host without a worker: it reports itself unhealthy, and the group replaces it."""
    host.program("aws", '[ "$1" != s3 ]')
    booted = host.boot()
    assert booted.returncode != 0
    [reported, *_] = host.called("aws autoscaling set-instance-health")
    assert "--health-status Unhealthy" in reported
    assert "--instance-id i-0123456789" in reported
    assert host.called("systemctl start") == []
