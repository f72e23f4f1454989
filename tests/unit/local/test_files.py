"""What local mode writes: airflow.cfg, the region catalogue, keys, ports, platform.json and its lock."""

from __future__ import annotations

import configparser
import json
import stat
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airbridge.control_plane.airflow_settings import RECOMMENDED, Setting, as_config, as_environment, merged
from airbridge.control_plane.local import airflow_config, aws, environment, keys, plan, state
from airbridge.control_plane.local.exceptions import AlreadyRunning, NotRunning
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.state import PlatformPhase, PlatformState
from airbridge.executor.exceptions import ConfigurationError


def a_plan(tmp_path: Path, **options: object) -> plan.Plan:
    directory = StateDir(tmp_path / "state")
    directory.make()
    made = keys.load_or_make(directory.keys_file, plan.PORTS, {})
    environ = {"PATH": "/bin", "AIRFLOW__CORE__EXECUTOR": "x", "AWS_PROFILE": "prod", "SECRET": "s"}
    return plan.Plan(Options(directory=directory.root, **options), directory, made, environ, migrate=False)  # type: ignore[arg-type] # a test's shorthand


def test_the_later_setting_of_an_option_holds() -> None:
    """A user's own value replaces the recommended one; the others stay."""
    mine = Setting("core", "parallelism", "4", "mine")
    found = {(s.section, s.option): s.value for s in merged(RECOMMENDED, [mine])}
    assert found["core", "parallelism"] == "4"
    assert len(found) == len(RECOMMENDED)


def test_every_recommended_setting_has_a_reason() -> None:
    """A setting without a reason has no place in the list."""
    assert not [s.option for s in RECOMMENDED if len(s.why) < 10]


def test_settings_survive_airflow_cfg() -> None:
    """What is written to airflow.cfg is what Airflow's parser, which interpolates %, reads."""
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
        the_plan.directory, the_plan.keys, the_plan.server.url(), the_plan.dags, {"core.parallelism": "3"}
    )
    airflow_config.write(the_plan.directory, settings)
    found = {f"{s.section}.{s.option}": s.value for s in settings}
    assert found["core.parallelism"] == "3"
    assert found["api.base_url"] == the_plan.ui_url
    assert found["airbridge.regions_file"] == str(the_plan.directory.regions_file)
    bundles = json.loads(found["dag_processor.dag_bundle_config_list"])
    assert [bundle["kwargs"]["source"] for bundle in bundles] == [
        {"kind": "folder", "path": str(the_plan.dags)},
        {"kind": "push"},
    ]
    assert stat.S_IMODE((the_plan.directory.airflow_home / "airflow.cfg").stat().st_mode) == 0o600


def test_the_catalogue_is_what_the_executor_reads(tmp_path: Path) -> None:
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


def test_the_users_shell_does_not_configure_the_platform(tmp_path: Path) -> None:
    """No AIRFLOW__ or AWS_ variable, and nothing unknown, of the user's reaches a process."""
    for component in plan.components(a_plan(tmp_path)):
        assert component.env["PATH"] == "/bin"
        assert not {"SECRET", "AWS_PROFILE", "AIRFLOW__CORE__EXECUTOR"} & set(component.env)


def test_a_worker_is_told_nothing_of_the_control_plane(tmp_path: Path) -> None:
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


def test_every_pool_of_every_region_gets_its_workers() -> None:
    """Names say region, pool and number."""
    options = Options(
        directory=Path("/x"), regions=aws.parse_regions(["a", "b:default,gpu"]), workers_per_region=2
    )
    assert [worker.name for worker in plan.workers(options)] == [
        "a-default-1",
        "a-default-2",
        "b-default-1",
        "b-default-2",
        "b-gpu-1",
        "b-gpu-2",
    ]


def test_components_wait_only_for_components_that_exist(tmp_path: Path) -> None:
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


def test_a_dead_platforms_file_is_not_a_running_platform(tmp_path: Path) -> None:
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
