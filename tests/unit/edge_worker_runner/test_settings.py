"""What a runner is told, and what it refuses to be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.runner.settings import RunnerSettings


def test_the_environment_of_tasks_is_an_allow_list() -> None:
    """Of the agent's environment only harmless names pass; the task's own settings are added."""
    settings = RunnerSettings(
        airflow_home=Path("/state/airflow"),
        worker_name="w",
        task_env={"AIRFLOW__CORE__DEFAULT_TIMEZONE": "utc", "MINE": "1"},
        agent_env={
            "PATH": "/bin",
            "AIRBRIDGE_WORKER_JOIN_TOKEN_FILE": "x",
            "AWS_SECRET_ACCESS_KEY": "y",
            "LANG": "C",
        },
    )
    assert settings.environment() == {
        "PATH": "/bin",
        "LANG": "C",
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
def test_secrets_of_the_control_plane_are_refused(name: str) -> None:
    """The message names the variable and says what to do."""
    with pytest.raises(SettingsError, match=f"{name}.*remove it"):
        RunnerSettings(airflow_home=Path("/x"), worker_name="w", task_env={name: "v"})


@pytest.mark.parametrize(
    "wrong", [{"max_templates": 0}, {"parse_ttl_seconds": -1.0}, {"template_memory_bytes": 0}]
)
def test_bounds_must_make_sense(wrong: dict[str, float]) -> None:
    """The message names the setting, its value and the bound."""
    ((name, value),) = wrong.items()
    with pytest.raises(SettingsError, match=f"{name} is {value}; it must be at least"):
        RunnerSettings(airflow_home=Path("/x"), worker_name="w", **wrong)  # type: ignore[arg-type] # any of the fields


def test_the_agents_environment_is_not_shown() -> None:
    """A settings object may be logged."""
    assert "hush" not in repr(
        RunnerSettings(airflow_home=Path("/x"), worker_name="w", agent_env={"K": "hush"})
    )
