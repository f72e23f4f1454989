"""Rule of which options of Airflow's configuration tasks on workers see."""

from __future__ import annotations

import pytest

from airbridge.core.task_options import concerns_tasks, of_variable, select, why_refused


@pytest.mark.parametrize(
    "name",
    [
        "core.default_timezone",
        "core.allowed_deserialization_classes",
        "smtp.smtp_host",
        "email.from_email",
        "api.base_url",
        "operators.default_owner",
        "acme.lake",
        "common.io.xcom_objectstorage_path",
    ],
)
def test_tasks_options_are_delivered(name: str) -> None:
    """Options that decide what tasks do, and every option of a section that is the operator's or a provider's own."""
    section, _, option = name.rpartition(".")
    chosen, refused = select({section: {option: "v"}})
    assert chosen == {section: {option: "v"}}
    assert not refused


@pytest.mark.parametrize(
    "name",
    [
        "database.sql_alchemy_conn",
        "database.sql_alchemy_engine_args",
        "core.fernet_key",
        "core.internal_api_secret_key",
        "core.simple_auth_manager_users",
        "api_auth.jwt_secret",
        "api_auth.jwt_private_key_path",
        "api.secret_key",
        "webserver.secret_key",
        "celery.broker_url",
        "celery_broker_transport_options.password",
        "airbridge.secrets_dir",
        "secrets.backend_kwargs",
        "workers.secrets_backend_kwargs",
        "dag_processor.dag_bundle_config_list",
        "core.executor",
        "core.dags_folder",
        "sentry.sentry_dsn",
    ],
)
def test_control_planes_options_stay(name: str) -> None:
    """No secret of the control plane, and nothing that concerns only its services, leaves it."""
    section, _, option = name.rpartition(".")
    assert not concerns_tasks(section, option)
    assert select({section: {option: "v"}}) == ({}, {})


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("smtp", "smtp_password", "x"),
        ("acme", "api_token", "x"),
        ("acme", "database", "postgresql://ann:hush@db/x"),
        ("acme", "certificate", "-----BEGIN PRIVATE KEY-----"),
        ("acme", "key_cmd", "cat /key"),
        ("acme", "described_as_sensitive", "x"),
        ("acme", "withheld", "x"),
    ],
)
def test_secrets_are_named_not_delivered(section: str, option: str, value: str) -> None:
    """What is or looks like a secret, or is withheld, is reported by name and reason, without its value."""
    chosen, refused = select(
        {section: {option: value}}, {("acme", "described_as_sensitive")}, ("acme.withheld",)
    )
    assert not chosen
    assert list(refused) == [f"{section}.{option}"]
    assert value not in refused[f"{section}.{option}"].split()


def test_empty_allow_list_is_not_delivered() -> None:
    """The control plane's protection against classes in XComs does not take Airflow's own classes from tasks."""
    assert select({"core": {"allowed_deserialization_classes": " "}}) == ({}, {})


@pytest.mark.parametrize(
    ("variable", "found"),
    [
        ("AIRFLOW__CORE__DEFAULT_TIMEZONE", ("core", "default_timezone")),
        ("AIRFLOW__ACME__A__B", ("acme", "a__b")),
        ("AIRFLOW_HOME", None),
        ("AIRFLOW_VAR_X", None),
        ("AIRFLOW__CORE", None),
    ],
)
def test_variable_names_an_option(variable: str, found: tuple[str, str] | None) -> None:
    """As Airflow reads it."""
    assert of_variable(variable) == found


@pytest.mark.parametrize(
    ("section", "option"),
    [("core", "fernet_key"), ("core", "dags_folder"), ("bad]", "x"), ("x", "a=b"), ("x\n[core]", "y")],
)
def test_option_is_refused_by_name(section: str, option: str) -> None:
    """A name in [airbridge_tasks] that tasks may not have, or that would break the worker's airflow.cfg."""
    assert why_refused(section, option) is not None
