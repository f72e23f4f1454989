"""Files that local mode writes: airflow.cfg, the region catalogue, keys, ports, platform.json and its lock."""

from __future__ import annotations

import configparser
import json
import stat
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airbridge.control_plane.airflow_settings import RECOMMENDED, Setting, as_config, as_environment, merged
from airbridge.control_plane.identity.secrets import create_all
from airbridge.control_plane.local import environment, keys, plan, state
from airbridge.control_plane.local.exceptions import AlreadyRunning, NotRunning
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.services import airflow_config, aws
from airbridge.control_plane.local.state import PlatformPhase, PlatformState
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.service_secrets import FILES, Secret, Service, secrets_of


def a_plan(tmp_path: Path, **options: object) -> plan.Plan:
    directory = StateDir(tmp_path / "state")
    directory.make()
    made = keys.load_or_make(directory.keys_file, plan.PORTS, {})
    environ = {"PATH": "/bin", "AIRFLOW__CORE__EXECUTOR": "x", "AWS_PROFILE": "prod", "SECRET": "s"}
    return plan.Plan(Options(directory=directory.root, **options), directory, made, environ, migrate=False)  # type: ignore[arg-type] # a test's shorthand


def test_later_setting_wins() -> None:
    """A user's own value replaces the recommended one; the others stay."""
    mine = Setting("core", "parallelism", "4", "mine")
    found = {(s.section, s.option): s.value for s in merged(RECOMMENDED, [mine])}
    assert found["core", "parallelism"] == "4"
    assert len(found) == len(RECOMMENDED)


def test_every_recommended_setting_has_a_reason() -> None:
    """A setting without a reason has no place in the list."""
    assert not [s.option for s in RECOMMENDED if len(s.why) < 10]


def test_settings_survive_airflow_cfg() -> None:
    """Values written to airflow.cfg are read back unchanged by Airflow's parser, which interpolates %."""
    parser = configparser.ConfigParser()
    parser.read_string(as_config([Setting("logging", "log_format", "50% [%(asctime)s]", "")]))
    assert parser.get("logging", "log_format", raw=True).replace("%%", "%") == "50% [%(asctime)s]"


def test_settings_as_environment() -> None:
    """The variables are those that Airflow reads."""
    assert as_environment([Setting("api_auth", "jwt_secret", "s", "")]) == {
        "AIRFLOW__API_AUTH__JWT_SECRET": "s"
    }


def test_an_override_needs_a_section() -> None:
    """`parallelism=4` is refused with what would be right."""
    with pytest.raises(
        ConfigurationError, match=r"'parallelism' has no section; write it as section.option=value"
    ):
        airflow_config.parse_overrides({"parallelism": "4"})


def test_local_settings_point_at_this_platform(tmp_path: Path) -> None:
    """Database, UI, region catalogue, keys and DAG folder are the state directory's own; its file is private."""
    the_plan = a_plan(tmp_path)
    settings = airflow_config.settings(
        the_plan.directory, the_plan.keys, the_plan.dags, {"core.parallelism": "3"}
    )
    found = {f"{s.section}.{s.option}": s.value for s in settings}
    assert found["core.parallelism"] == "3"
    assert found["api.base_url"] == the_plan.ui_url
    assert found["airbridge.regions_file"] == str(the_plan.directory.regions_file)
    bundles = json.loads(found["dag_processor.dag_bundle_config_list"])
    assert [bundle["kwargs"]["source"] for bundle in bundles] == [
        {"kind": "folder", "path": str(the_plan.dags)},
        {"kind": "push"},
    ]


def test_services_get_their_own_secrets(tmp_path: Path) -> None:
    """The private airflow.cfg of a service and its linked key files hold the secrets of the table and its own role."""
    the_plan = a_plan(tmp_path)
    create_all(the_plan.directory.secrets, "airbridge.local", datetime.now(UTC))
    settings = airflow_config.settings(the_plan.directory, the_plan.keys, the_plan.dags, {})
    airflow_config.write_all(the_plan.directory, the_plan.keys, the_plan.server, settings, the_plan.choices)
    values = {
        Secret.FERNET_KEY: the_plan.keys.fernet_key,
        Secret.JWT_SECRET: the_plan.keys.jwt_secret,
        Secret.API_SECRET_KEY: the_plan.keys.api_secret_key,
    }
    for service in Service:
        path = the_plan.directory.config_file(service)
        text = path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        files = {linked.name for linked in (path.parent / "secrets").iterdir()}
        held = {secret for secret, value in values.items() if value in text}
        held |= {secret for secret, name in FILES.items() if name in files}
        assert held == secrets_of(service)
        assert the_plan.keys.database_password not in text
        logins = {each for each, password in the_plan.keys.service_passwords.items() if password in text}
        assert logins == {service}
    assert not (the_plan.directory.airflow_home / "airflow.cfg").exists()


def test_other_executors_need_the_jwt_secret(tmp_path: Path) -> None:
    """LocalExecutor's tasks have tokens that the API server verifies, so the scheduler signs with its secret."""
    the_plan = a_plan(tmp_path, airflow={"core.executor": "airbridge.executor.EdgeExecutor,LocalExecutor"})
    assert secrets_of(Service.SCHEDULER, the_plan.choices) == {Secret.SIGNING_KEY, Secret.JWT_SECRET}
    assert secrets_of(Service.SCHEDULER, a_plan(tmp_path).choices) == {Secret.SIGNING_KEY}


def test_catalogue_matches_executor_format(tmp_path: Path) -> None:
    """The region catalogue names every region's queues, buckets and data at the emulator."""
    resources = aws.Resources(
        home_region="us-east-1", regions=aws.parse_regions(["us-east-1", "eu-west-1:default,gpu"])
    )
    read = tomllib.loads(aws.catalogue(resources, 5000))
    assert read["home_region"] == "us-east-1"
    europe = read["region"][1]
    assert europe["data"] == ["s3://airbridge-local-eu-west-1-data"]
    assert europe["endpoint_url"] == "http://127.0.0.1:5000"
    assert [pool["queue_url"] for pool in europe["pool"]] == [
        "http://127.0.0.1:5000/123456789012/airbridge-local-eu-west-1-default",
        "http://127.0.0.1:5000/123456789012/airbridge-local-eu-west-1-gpu",
    ]


def test_keys_and_ports_are_kept(tmp_path: Path) -> None:
    """A second start has the same keys and, where they are still free, the same ports; the file is private."""
    path = tmp_path / "keys.json"
    first = keys.load_or_make(path, ["a", "b"], {})
    assert keys.load_or_make(path, ["a", "b"], {}) == first
    assert len(set(first.ports.values())) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_damaged_keys_are_reported(tmp_path: Path) -> None:
    """A damaged file is named, with what to do."""
    path = tmp_path / "keys.json"
    path.write_text("{")
    with pytest.raises(ConfigurationError, match=r"keys.json is damaged .*delete the state directory"):
        keys.load_or_make(path, ["a"], {})


def test_user_environment_is_not_inherited(tmp_path: Path) -> None:
    """No AIRFLOW__ or AWS_ variable, and nothing unknown, of the user's reaches a process."""
    for component in plan.components(a_plan(tmp_path)):
        assert component.env["PATH"] == "/bin"
        assert not {"SECRET", "AWS_PROFILE", "AIRFLOW__CORE__EXECUTOR"} & set(component.env)


def test_worker_environment_has_no_secrets(tmp_path: Path) -> None:
    """Neither the state directory's keys nor any path to them is in a worker's environment or command line."""
    the_plan = a_plan(tmp_path)
    workers = [c for c in plan.components(the_plan) if c.name.startswith("worker-")]
    assert len(workers) == 2
    for worker in workers:
        told = json.dumps([worker.argv, dict(worker.env)])
        for secret in (the_plan.keys.fernet_key, the_plan.keys.jwt_secret, the_plan.keys.database_password):
            assert secret not in told
        assert str(the_plan.directory.control_plane) not in told
        assert str(the_plan.directory.airflow_home) not in told


def test_variables_for_tasks_are_added(tmp_path: Path) -> None:
    """What the user gives to tasks takes neither AWS nor the links from them, unless it names them; that is reported."""
    mine = {"AIRFLOW_VAR_COLOUR": "red", "AWS_DEFAULT_REGION": "mars"}
    the_plan = a_plan(tmp_path, worker_env={"AIRBRIDGE_WORKER_TASK_ENV": json.dumps(mine)})
    worker = next(c for c in plan.components(the_plan) if c.name == "worker-eu-west-1-default-1")
    given = json.loads(worker.env["AIRBRIDGE_WORKER_TASK_ENV"])
    assert mine.items() <= given.items()
    assert (given["AWS_ENDPOINT_URL"], given["AWS_REGION"]) == (the_plan.aws_url, "eu-west-1")
    assert given["AWS_ACCESS_KEY_ID"]
    assert plan.overridden_task_variables(the_plan) == ["AWS_DEFAULT_REGION"]


@pytest.mark.parametrize("text", ["{", "[]", '{"A": 1}'])
def test_malformed_variables_for_tasks_are_named(tmp_path: Path, text: str) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigurationError, match="AIRBRIDGE_WORKER_TASK_ENV"):
        plan.components(a_plan(tmp_path, worker_env={"AIRBRIDGE_WORKER_TASK_ENV": text}))


def test_workers_are_named_by_pool() -> None:
    """Names consist of region, pool and number."""
    options = Options(
        directory=Path("/x"),
        regions=aws.parse_regions(["eu-west-1", "us-east-1:default,gpu"]),
        workers_per_region=2,
    )
    assert [worker.name for worker in plan.workers(options)] == [
        "eu-west-1-default-1",
        "eu-west-1-default-2",
        "us-east-1-default-1",
        "us-east-1-default-2",
        "us-east-1-gpu-1",
        "us-east-1-gpu-2",
    ]


def test_dependencies_name_existing_components(tmp_path: Path) -> None:
    """No name in `after` is a slip, with and without a migration."""
    for migrate in (False, True):
        the_plan = a_plan(tmp_path, schedulers=2)
        components = plan.components(
            plan.Plan(the_plan.options, the_plan.directory, the_plan.keys, the_plan.environ, migrate)
        )
        names = [component.name for component in components]
        assert {"scheduler", "scheduler-2", "gateway"} <= set(names)
        assert ("database" in names) == migrate
        assert set().union(*(component.after for component in components)) <= set(names)


def test_a_state_directory_has_one_owner(tmp_path: Path) -> None:
    """While one holds the lock another is refused with its pid; afterwards the directory is free."""
    directory = StateDir(tmp_path)
    assert state.lock_holder(directory) is None
    with state.locked(directory):
        with pytest.raises(AlreadyRunning) as refusal, state.locked(directory):
            pass
        assert refusal.value.pid == state.own_pid()
    assert state.lock_holder(directory) is None
    with state.locked(directory):
        pass


def test_state_file_requires_held_lock(tmp_path: Path) -> None:
    """platform.json without the lock held is what a killed supervisor leaves; nothing runs."""
    directory = StateDir(tmp_path)
    now = PlatformState(
        phase=PlatformPhase.READY,
        pid=1,
        root=str(tmp_path),
        started_at=datetime.now(UTC),
        seconds_to_ready=1.0,
        ui_url="u",
        gateway_url="g",
        operator_url="o",
        aws_url="a",
        dags="d",
        components=(),
    )
    state.write(directory.platform_file, now)
    with pytest.raises(NotRunning, match="airbridge up"):
        state.read(directory)
    with state.locked(directory):
        assert state.read(directory) == now


def test_environment_is_an_allowlist() -> None:
    """Only named variables pass."""
    assert environment.base({"HOME": "/h", "AIRFLOW_HOME": "/a"}) == {"HOME": "/h", "PYTHONUNBUFFERED": "1"}


def test_preloaded_components(tmp_path: Path) -> None:
    """Airflow's and AirBridge's processes are forked with packages loaded, not workers with variables that packages may read."""
    found = {each.name: each.preloaded for each in plan.components(a_plan(tmp_path))}
    assert {"postgres", "aws"} == {name for name, preloaded in found.items() if not preloaded}
    given = a_plan(tmp_path, worker_env={"PYTHONWARNINGS": "error"})
    assert not any(each.preloaded for each in plan.components(given) if each.name.startswith("worker-"))
    own = a_plan(tmp_path, worker_env={"AIRBRIDGE_WORKER_LOG_LEVEL": "DEBUG"})
    assert all(each.preloaded for each in plan.components(own) if each.name.startswith("worker-"))
