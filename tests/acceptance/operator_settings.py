"""Settings of an operator's own on the shared platform: options, secrets and variables of every kind that may reach a task or may not."""

from __future__ import annotations

import json

from tests.support.platform import BOTH_EXECUTORS

SECRETS = ("hush-token", "hush-password")
AIRFLOW = {
    **BOTH_EXECUTORS,
    "core.default_timezone": "Europe/Berlin",
    "core.allowed_deserialization_classes": "airflow.* acme_models.* unusual_prefix_*",
    "core.sensitive_var_conn_names": "iban",
    "core.default_task_retry_delay": "7",
    "smtp.smtp_host": "mail.example",
    "email.from_email": "Ann <ann@example>",
    "operators.default_deferrable": "False",
    "acme.lake": "s3://100%/lake",
    "acme.api_token": SECRETS[0],
    "smtp.smtp_password": SECRETS[1],
}
WORKER = {
    "AIRBRIDGE_WORKER_TASK_ENV": json.dumps({"AIRFLOW_VAR_PARITY_COLOUR": "red"}),
    "AIRFLOW_CONN_PARITY": "postgres://u:hush-connection@h/x",
    "AIRFLOW__CORE__FERNET_KEY": "hush-key",
}
