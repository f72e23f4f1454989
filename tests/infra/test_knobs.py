"""Settings of an environment file that reach services and tasks."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import ENVIRONMENTS, Stacks, read

from airbridge.infra.app import synthesise
from airbridge.infra.exceptions import EnvironmentFileError
from airbridge.infra.settings import Settings

BUNDLES = json.dumps([{"name": "git", "classpath": "x", "kwargs": {}}])


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Stacks:
    """The staging environment with every knob turned."""
    folder: Path = tmp_path_factory.mktemp("knobs")
    text = (ENVIRONMENTS / "staging.toml").read_text()
    text = text.replace(
        "[images]",
        "[control_plane.airflow]\n"
        '"core.default_timezone" = "Europe/Berlin"\n'
        f'"dag_processor.dag_bundle_config_list" = {json.dumps(BUNDLES)}\n'
        "[control_plane.environment]\n"
        'COMPANY = "example"\n'
        "[control_plane.sizes.gateway]\ncpu = 2048\nmemory = 8192\n"
        "[images]",
    )
    pool = 'name = "default"\n'
    more = 'data_write = ["s3://results/out"]\ntask_env = { STAGE = "test" }\n'
    (folder / "staging.toml").write_text(text.replace(pool, pool + more, 1))
    return read(synthesise(Settings("staging", folder), folder / "out"))


def test_options_reach_every_service(stacks: Stacks) -> None:
    """An option of Airflow and a variable are in every container; the stacks' own settings stay."""
    for path, task in resources(stacks, "aws_ecs_task_definition"):
        for container in json.loads(task["container_definitions"]):
            found = {each["name"]: each["value"] for each in container["environment"]}
            assert "Europe/Berlin" == found["AIRFLOW__CORE__DEFAULT_TIMEZONE"], path
            assert BUNDLES == found["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"], path
            assert "example" == found["COMPANY"], path
            assert "airbridge.executor.EdgeExecutor" == found["AIRFLOW__CORE__EXECUTOR"], path


SANDBOX = "AIRFLOW__AIRBRIDGE__SANDBOX"


def sandboxes(stacks: Stacks) -> set[str | None]:
    """Return the sandbox settings of every container of the control plane."""
    return {
        {each["name"]: each["value"] for each in container["environment"]}.get(SANDBOX)
        for _, task in resources(stacks, "aws_ecs_task_definition")
        for container in json.loads(task["container_definitions"])
    }


@pytest.mark.parametrize("environment", ["prod", "staging", "dev"])
def test_parsing_requires_the_sandbox(environment: str, synthesised: Callable[[str], Stacks]) -> None:
    """Fargate's kernel may lack Landlock: pushed code and DAG files are refused there unless the file chooses otherwise."""
    assert {"require"} == sandboxes(synthesised(environment))


def test_sandbox_is_a_choice(tmp_path: Path) -> None:
    """An environment file may accept what protection the kernel offers; no other word is accepted."""
    text = (ENVIRONMENTS / "prod.toml").read_text()
    chosen = text.replace("[control_plane]\n", '[control_plane]\nsandbox = "auto"\n')
    (tmp_path / "prod.toml").write_text(chosen)
    assert {"auto"} == sandboxes(read(synthesise(Settings("prod", tmp_path), tmp_path / "out")))
    (tmp_path / "prod.toml").write_text(chosen.replace('sandbox = "auto"', 'sandbox = "off"'))
    with pytest.raises(EnvironmentFileError, match=r"control_plane\.sandbox: .*'require' or 'auto'"):
        synthesise(Settings("prod", tmp_path), tmp_path / "out")


def test_services_have_their_sizes(stacks: Stacks) -> None:
    """One service is larger, the others keep their default."""
    sizes = {task["family"]: task["memory"] for _, task in resources(stacks, "aws_ecs_task_definition")}
    assert "8192" == sizes.pop("airbridge-staging-gateway")
    assert "1024" == sizes.pop("airbridge-staging-operator")  # it only waits for a session
    assert {"2048"} == set(sizes.values())


def test_pool_writes_its_prefix_only(stacks: Stacks) -> None:
    """Tasks of the pool may write below the prefix; the other region's may not; the endpoint lets it pass."""
    granted = {
        path: json.loads(policy["policy"])
        for path, policy in resources(stacks, "aws_iam_role_policy")
        if "task-role" in path and "s3:PutObject" in policy["policy"]
    }
    assert ["edge-us-east-1"] == [path.split("/")[0] for path in granted]
    [policy] = granted.values()
    [statement] = [one for one in policy["Statement"] if "s3:PutObject" in one["Action"]]
    assert "arn:aws:s3:::results/out/*" == statement["Resource"]
    [endpoint] = [
        one["policy"]
        for path, one in resources(stacks, "aws_vpc_endpoint")
        if path.startswith("edge-us-east-1/") and path.endswith("/s3")
    ]
    assert "arn:aws:s3:::results/*" in endpoint


def test_variables_reach_tasks_of_a_pool(stacks: Stacks) -> None:
    """A pool's variables are added to those of every task, and are not another region's."""
    found = {}
    for path, template in resources(stacks, "aws_launch_template"):
        script = base64.b64decode(template["user_data"]).decode()
        [line] = [each for each in script.splitlines() if each.startswith("AIRBRIDGE_WORKER_TASK_ENV=")]
        found[path.split("/")[0]] = json.loads(line.split("=", 1)[1])
    assert "test" == found["edge-us-east-1"]["STAGE"]
    assert "us-east-1" == found["edge-us-east-1"]["AWS_REGION"]
    assert "STAGE" not in found["edge-eu-west-1"]
