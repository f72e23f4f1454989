"""Rule of which options of Airflow's configuration tasks on workers see, and which variables name certificates to them.

Gateway and workers follow it. The gateway delivers what the operator has set: the options of `DELIVERED`, and every option of a section that neither
`DELIVERED` nor `KEPT_SECTIONS` names. An option that is, or looks like, a secret is not delivered, and none of
`REFUSED` can be, in any way. `docs/reference/task-settings.md` is generated from this module.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Final

#: Values by section and option, both in lower case.
Options = Mapping[str, Mapping[str, str]]

# Where tools find the certificates of authorities: behind a proxy that ends TLS, no task reaches anything without.
CERTIFICATE_VARIABLES: Final = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
)

_EVERY: Final = frozenset({"*"})

# Options of Airflow's own sections that decide how a DAG file is read, or how a task behaves.
DELIVERED: Final[Mapping[str, frozenset[str]]] = {
    "api": frozenset({"base_url"}),
    "core": frozenset(
        {
            "allowed_deserialization_classes",
            "allowed_deserialization_classes_regexp",
            "dag_run_conf_overrides_params",
            "dagbag_import_error_traceback_depth",
            "dagbag_import_error_tracebacks",
            "dagbag_import_timeout",
            "default_task_execution_timeout",
            "default_task_retries",
            "default_task_retry_delay",
            "default_task_weight_rule",
            "default_timezone",
            "hide_sensitive_var_conn_fields",
            "killed_task_cleanup_time",
            "max_active_runs_per_dag",
            "max_active_tasks_per_dag",
            "max_consecutive_failed_dag_runs_per_dag",
            "max_map_length",
            "max_task_retry_delay",
            "max_templated_field_length",
            "sensitive_var_conn_names",
            "task_success_overtime",
        }
    ),
    "email": _EVERY,
    "lineage": _EVERY,
    "logging": frozenset({"logging_level", "min_length_masked_secret"}),
    "operators": _EVERY,
    "scheduler": frozenset(
        {"catchup_by_default", "create_cron_data_intervals", "create_delta_data_intervals"}
    ),
    "sensors": _EVERY,
    "smtp": _EVERY,
}

# Sections of Airflow, its executors and its services: the control plane's own, or each host's.
KEPT_SECTIONS: Final = frozenset(
    {
        "airbridge_residency",
        "airbridge_secrets",
        "airbridge_tasks",
        "airbridge_xcoms",
        "aws_auth_manager",
        "aws_batch_executor",
        "aws_ecs_executor",
        "aws_lambda_executor",
        "azure_remote_logging",
        "dag_processor",
        "elasticsearch",
        "elasticsearch_configs",
        "fab",
        "kerberos",
        "keycloak_auth_manager",
        "kubernetes_environment_variables",
        "kubernetes_executor",
        "kubernetes_secrets",
        "local_kubernetes_executor",
        "metrics",
        "opensearch",
        "opensearch_configs",
        "secrets",
        "sentry",
        "traces",
        "triggerer",
        "usage_data_collection",
        "webserver",
        "workers",
    }
)

# Options that no task may have, whoever names them: the control plane's secrets and the agent's settings.
REFUSED: Final = (
    "airbridge.*",
    "api.secret_key",
    "api_auth.*",
    "celery.*",
    "celery_*.*",
    "core.fernet_key",
    "core.internal_api_secret_key",
    "core.simple_auth_manager_*",
    "core.sql_alchemy_conn",
    "database.*",
    "edge.*",
    "execution_api.*",
    "webserver.secret_key",
)

# Options that the worker writes itself, because they are paths, names and services of its host.
WRITTEN_BY_WORKER: Final = (
    "core.dags_folder",
    "core.executor",
    "core.hostname_callable",
    "core.load_examples",
    "dag_processor.*",
    "logging.base_log_folder",
)

# Parts of an option's name by which its value is taken for a secret.
SECRET_NAMES: Final = (
    "access_key",
    "access_token",
    "api_key",
    "apikey",
    "authorization",
    "connection_string",
    "credential",
    "dsn",
    "keyfile_dict",
    "passphrase",
    "passwd",
    "password",
    "private_key",
    "secret",
    "service_account",
    "token",
)

# An option whose value is the output of a command, or is kept in a secrets backend.
_INDIRECT: Final = ("_cmd", "_secret")

# A URL with a password, or a PEM block.
_SECRET_VALUE: Final = re.compile(r"://[^/\s@]*:[^/\s@]*@|-----BEGIN ")

# Names that an airflow.cfg can hold.
_NAME: Final = re.compile(r"[a-z0-9_][a-z0-9_.\- ]*")

# What an empty value means in the control plane only: it imports no class that an XCom names, and tasks do.
_NOT_WHEN_EMPTY: Final = frozenset(
    {"core.allowed_deserialization_classes", "core.allowed_deserialization_classes_regexp"}
)


def why_never(section: str, option: str) -> str | None:
    """Return why no task may have an option, whoever names it; None if it may."""
    if _matches(section, option, REFUSED):
        return "it belongs to the control plane or to the agent"
    return None


def why_refused(section: str, option: str) -> str | None:
    """Return why an option cannot be delivered to tasks; None if it can."""
    if (never := why_never(section, option)) is not None:
        return never
    if _matches(section, option, WRITTEN_BY_WORKER):
        return "each worker has its own"
    if not _NAME.fullmatch(section) or not _NAME.fullmatch(option):
        return "its name does not fit a configuration file"
    return None


def why_secret(option: str, value: str) -> str | None:
    """Return why an option is taken for a secret; None if it is not."""
    if option.endswith(_INDIRECT):
        return "its value comes from a command or a secrets backend"
    if any(part in option for part in SECRET_NAMES):
        return "its name is that of a secret"
    if _SECRET_VALUE.search(value):
        return "its value contains a password or a key"
    return None


def concerns_tasks(section: str, option: str) -> bool:
    """Return whether an option is one of those that tasks see without being named."""
    if section in DELIVERED:
        return option in DELIVERED[section] or DELIVERED[section] == _EVERY
    return section not in KEPT_SECTIONS and why_refused(section, option) is None


def select(
    options: Options, sensitive: Collection[tuple[str, str]] = (), withheld: Collection[str] = ()
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return what tasks see of the options that are set, and why each of the others that concern them is not delivered.

    `sensitive` are options that Airflow describes as such, `withheld` patterns of ``section.option``.
    """
    chosen: dict[str, dict[str, str]] = {}
    refused: dict[str, str] = {}
    for section, values in options.items():
        for option, value in values.items():
            name = f"{section}.{option}"
            if not concerns_tasks(section, option) or (name in _NOT_WHEN_EMPTY and not value.strip()):
                continue
            why = _why_not(section, option, value, (section, option) in sensitive, withheld)
            if why is None:
                chosen.setdefault(section, {})[option] = value
            else:
                refused[name] = why
    return chosen, refused


def of_variable(variable: str) -> tuple[str, str] | None:
    """Return section and option of an ``AIRFLOW__SECTION__OPTION`` variable; None if it is none."""
    prefix, _, rest = variable.partition("__")
    section, separator, option = rest.partition("__")
    return (section.lower(), option.lower()) if prefix == "AIRFLOW" and separator and option else None


def _why_not(section: str, option: str, value: str, sensitive: bool, withheld: Collection[str]) -> str | None:
    if _matches(section, option, withheld):
        return "[airbridge] task_options_withheld names it"
    if sensitive:
        return "Airflow describes it as sensitive"
    return why_refused(section, option) or why_secret(option, value)


def _matches(section: str, option: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(f"{section}.{option}", pattern) for pattern in patterns)
