"""Options of the gateway's Airflow configuration that workers receive with their identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.integration.gateway.world import Worker, World, running

from airbridge.control_plane import task_options
from airbridge.core.exceptions import ConfigurationError

SET = {
    "AIRFLOW__ACME__LAKE": "s3://lake",
    "AIRFLOW__ACME__API_TOKEN": "hush-1",
    "AIRFLOW__ACME__STORE": "postgres://ann:hush-2@db/x",
    "AIRFLOW__ACME__OWN": "hush-3",
    "AIRFLOW__SMTP__SMTP_HOST": "mail",
    "AIRFLOW__SMTP__SMTP_PASSWORD": "hush-4",
    "AIRFLOW__CORE__DEFAULT_TIMEZONE": "Europe/Berlin",
    "AIRFLOW__CORE__ALLOWED_DESERIALIZATION_CLASSES": "",
    "AIRFLOW__CORE__FERNET_KEY": "hush-5",
    "AIRFLOW__API_AUTH__JWT_SECRET": "hush-6",
    "AIRFLOW__CELERY__BROKER_URL": "redis://:hush-7@broker",
    "AIRFLOW__SECRETS__BACKEND_KWARGS": '{"token": "hush-8"}',
    "AIRFLOW__AIRBRIDGE_TASKS__CORE__ALLOWED_DESERIALIZATION_CLASSES": "airflow.* acme.*",
    "AIRFLOW__AIRBRIDGE_TASKS__ACME__API_TOKEN": "for tasks",
}


def delivered(worker: Worker, world: World) -> dict[str, dict[str, str]]:
    return worker.enrol(world.join_token()).settings.task_options


def test_workers_receive_the_operators_options(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the rule and those named for tasks; no secret, and each that stays is named once, without its value."""
    for name, value in SET.items():
        monkeypatch.setenv(name, value)
    with (
        capture_logs() as logs,
        running(world.metadata, tmp_path, task_options_withheld=("acme.own",)) as it,
    ):
        options = delivered(Worker(it, "eu-west-1", "default", "w"), it)
        it.close_workers()
    assert options["acme"] == {"lake": "s3://lake", "api_token": "for tasks"}
    assert options["smtp"] == {"smtp_host": "mail"}
    assert options["core"]["default_timezone"] == "Europe/Berlin"
    assert options["core"]["allowed_deserialization_classes"] == "airflow.* acme.*"
    assert not {"celery", "database", "api_auth", "secrets", "airbridge", "airbridge_tasks"} & options.keys()
    assert "hush" not in repr(options)
    [warning] = [each for each in logs if each["event"] == "task_options.not_delivered"]
    assert warning["options"].keys() == {"acme.store", "acme.own", "smtp.smtp_password"}
    assert "hush" not in repr(logs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CORE__FERNET_KEY", "it belongs to the control plane"),
        ("DATABASE__SQL_ALCHEMY_CONN", "it belongs to the control plane"),
        ("CORE__DAGS_FOLDER", "each worker has its own"),
        ("TIMEZONE", "must be <section>__<option>"),
    ],
)
def test_wrong_option_is_named(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    """The gateway does not start with an option for tasks that no task may have."""
    monkeypatch.setenv(f"AIRFLOW__AIRBRIDGE_TASKS__{name}", "hush")
    with pytest.raises(ConfigurationError, match=message) as caught:
        task_options.load()
    assert name.lower() in str(caught.value)
    assert "hush" not in str(caught.value)


def test_file_is_read_as_tasks_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Values of an airflow.cfg, interpolated; options that are not set are not delivered."""
    options = _load_file(
        monkeypatch, tmp_path, "[acme]\nbase = s3://x\nlake = %(base)s/100%%\n[smtp]\nsmtp_host = mail\n"
    )
    assert options["acme"] == {"base": "s3://x", "lake": "s3://x/100%"}
    assert options["smtp"] == {"smtp_host": "mail"}


def _load_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> Any:
    from airflow import configuration

    from airbridge.executor import _airflow

    config = tmp_path / "airflow.cfg"
    config.write_text(text)
    parser = configuration.AirflowConfigParser()
    parser.read(config)
    monkeypatch.setattr(configuration, "conf", parser)
    assert _airflow.airflow_option("smtp", "smtp_host") == "mail"
    return task_options.load()
