"""Settings of the runner, and the values that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.runner.settings import RunnerSettings


def test_task_environment_is_allow_list() -> None:
    """Of the agent's environment only harmless names and Airflow's options pass; the task's own settings are added."""
    settings = RunnerSettings(
        airflow_home=Path("/state/airflow"),
        worker_name="w",
        task_env={"AIRFLOW__CORE__DEFAULT_TIMEZONE": "utc", "MINE": "1"},
        agent_env={
            "PATH": "/bin",
            "AIRBRIDGE_WORKER_JOIN_TOKEN_FILE": "x",
            "AWS_SECRET_ACCESS_KEY": "y",
            "LANG": "C",
            "AWS_REGION": "eu-west-1",
            "REQUESTS_CA_BUNDLE": "/etc/company.pem",
            "HTTPS_PROXY": "http://ann:hush@proxy.example",
            "AIRFLOW__ACME__LAKE": "s3://x",
            "AIRFLOW__METRICS__STATSD_HOST": "here",
            "AIRFLOW_VAR_COLOUR": "red",
        },
    )
    assert settings.environment() == {
        "PATH": "/bin",
        "LANG": "C",
        "AWS_REGION": "eu-west-1",
        "REQUESTS_CA_BUNDLE": "/etc/company.pem",
        "AIRFLOW__ACME__LAKE": "s3://x",
        "AIRFLOW__METRICS__STATSD_HOST": "here",
        "AIRFLOW__CORE__DEFAULT_TIMEZONE": "utc",
        "MINE": "1",
        "AIRFLOW_HOME": "/state/airflow",
    }


@pytest.mark.parametrize(
    "name",
    [
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
        "AIRFLOW__CORE__FERNET_KEY",
        "AIRFLOW__API_AUTH__JWT_SECRET",
        "AIRBRIDGE_WORKER_NAME",
    ],
)
def test_control_plane_secrets_are_refused(name: str) -> None:
    """A secret in `task_env` is refused; the message names the variable and the remedy."""
    with pytest.raises(SettingsError, match=f"{name}, .*remove it"):
        RunnerSettings(airflow_home=Path("/x"), worker_name="w", task_env={name: "v"})


def test_variables_not_passed_are_named() -> None:
    """Each with the reason, and without its value."""
    found = RunnerSettings(
        airflow_home=Path("/x"),
        worker_name="w",
        task_env={"AIRFLOW_CONN_GIVEN": "postgres://task"},
        agent_env={
            "AIRFLOW__CORE__FERNET_KEY_CMD": "hush",
            "AIRFLOW__API_AUTH__JWT_SECRET": "hush",
            "AIRFLOW__CORE__DAGS_FOLDER": "/hush",
            "AIRFLOW__SMTP__SMTP_PASSWORD": "hush",
            "AIRFLOW__ACME__LAKE": "s3://x",
            "AIRFLOW_CONN_DB": "postgres://u:hush@h/x",
            "AIRFLOW_CONN_GIVEN": "postgres://agent",
            "AIRFLOW_VAR_COLOUR": "hush",
            "AWS_SECRET_ACCESS_KEY": "hush",
        },
    ).not_passed()
    assert {name: why.partition(";")[0] for name, why in found.items()} == {
        "AIRFLOW_CONN_DB": "task_env_from does not name it",
        "AIRFLOW_VAR_COLOUR": "task_env_from does not name it",
        "AIRFLOW__API_AUTH__JWT_SECRET": "it belongs to the control plane or to the agent",
        "AIRFLOW__CORE__DAGS_FOLDER": "each worker has its own",
        "AIRFLOW__CORE__FERNET_KEY_CMD": "it belongs to the control plane or to the agent",
        "AIRFLOW__SMTP__SMTP_PASSWORD": "its name is that of a secret",
    }
    assert "hush" not in repr(found)


def test_variables_pass_by_name() -> None:
    """Variables and connections pass by a pattern, a secret option by its own name, the control plane's secrets never."""
    settings = RunnerSettings(
        airflow_home=Path("/x"),
        worker_name="w",
        task_env_from=("AIRFLOW_VAR_*", "AIRFLOW_CONN_DB", "AIRFLOW__SMTP__SMTP_PASSWORD", "*"),
        agent_env={
            "AIRFLOW_VAR_COLOUR": "red",
            "AIRFLOW_CONN_DB": "postgres://h",
            "AIRFLOW__SMTP__SMTP_PASSWORD": "x",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AIRBRIDGE_WORKER_NAME": "x",
        },
    )
    assert settings.environment() == {
        "AIRFLOW_VAR_COLOUR": "red",
        "AIRFLOW_CONN_DB": "postgres://h",
        "AIRFLOW__SMTP__SMTP_PASSWORD": "x",
        "AIRFLOW_HOME": "/x",
    }


def test_overrides_of_task_env_are_named() -> None:
    """Only those that change something."""
    settings = RunnerSettings(
        airflow_home=Path("/x"),
        worker_name="w",
        task_env={"AWS_REGION": "us-east-1", "TZ": "UTC", "MINE": "1"},
        agent_env={"AWS_REGION": "eu-west-1", "TZ": "UTC"},
    )
    assert settings.overridden() == ["AWS_REGION"]


@pytest.mark.parametrize(
    "wrong", [{"max_templates": 0}, {"parse_ttl_seconds": -1.0}, {"template_memory_bytes": 0}]
)
def test_bounds_must_make_sense(wrong: dict[str, float]) -> None:
    """The message names the setting, its value and the bound."""
    ((name, value),) = wrong.items()
    with pytest.raises(SettingsError, match=f"{name} is {value}; it must be at least"):
        RunnerSettings(airflow_home=Path("/x"), worker_name="w", **wrong)  # type: ignore[arg-type] # any of the fields


def test_the_agents_environment_is_not_shown() -> None:
    """The agent's environment is not part of the settings' repr, so that they may be logged."""
    assert "hush" not in repr(
        RunnerSettings(airflow_home=Path("/x"), worker_name="w", agent_env={"K": "hush"})
    )
