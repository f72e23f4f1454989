"""Airflow settings that AirBridge recommends, each with its reason.

Local mode and the images apply them. Settings that depend on a deployment (URLs, keys, the database)
are added by the deployment. `as_environment` renders them for a container, `as_config` as airflow.cfg.
"""

from __future__ import annotations

import configparser
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One option of Airflow's configuration, and why it has this value."""

    section: str
    option: str
    value: str
    why: str

    @property
    def variable(self) -> str:
        """Environment variable that Airflow reads this option from."""
        return f"AIRFLOW__{self.section.upper()}__{self.option.upper()}"


EXECUTOR = "airbridge.executor.EdgeExecutor"
LEDGER_MANAGER = "airbridge.executor.ledger.manager.LedgerDBManager"
BUNDLE = "airbridge.executor.bundles.bundle.AirBridgeBundle"
# CVE-2025-68675 and CVE-2026-25219. The worker's own configuration has the same.
SENSITIVE_NAMES = "access_key,connection_string,proxies,proxy"
LOGGING_CONFIG = "airbridge.control_plane.task_logs.logging_config.LOGGING_CONFIG"

RECOMMENDED = (
    Setting("core", "executor", EXECUTOR, "tasks run on edge workers; add others after a comma"),
    Setting("core", "load_examples", "False", "Airflow's examples are not this platform's work"),
    Setting(
        "core",
        "parallelism",
        "32768",
        "bounds what is queued and running in a whole fleet; each region's slots bound what runs. One team's backlog must not fill it: the "
        "ledger shares pools fairly among what Airflow has queued",
    ),
    Setting("core", "max_active_tasks_per_dag", "256", "as above; Airflow's default of 16 suits one machine"),
    Setting(
        "core",
        "default_pool_task_slot_count",
        "32768",
        "as above; 128 by default. Read once, when the database is made: later it is `airflow pools set default_pool`",
    ),
    Setting(
        "database",
        "sql_alchemy_pool_size",
        "20",
        "connections that a process keeps, opened as they are needed: the gateway's threads use 1.5 x gateway_threads + 14; 5 by default",
    ),
    Setting("database", "external_db_managers", LEDGER_MANAGER, "`airflow db migrate` also makes the ledger"),
    Setting(
        "scheduler",
        "scheduler_idle_sleep_time",
        "0.2",
        "how soon new runs and expired waits are seen (1 s by default); the end of a task ends this pause on Postgres",
    ),
    Setting("scheduler", "max_tis_per_query", "128", "fewer loops for a wide fan-out; 16 by default"),
    Setting(
        "scheduler",
        "orphaned_tasks_check_interval",
        "30",
        "how soon tasks are taken over that a scheduler had queued, and not yet placed, when it was killed; 300 s by default",
    ),
    Setting(
        "scheduler",
        "task_queued_timeout",
        "86400",
        "a task may wait for a region to scale from zero or to come back; 600 s by default",
    ),
    Setting(
        "core",
        "allowed_deserialization_classes",
        "",
        "the control plane imports no class that an XCom names; workers, where tasks read XComs, have settings of their own",
    ),
    Setting(
        "api", "enable_xcom_deserialize_support", "False", "the API server shows XComs as they are stored"
    ),
    Setting(
        "api_auth",
        "jwt_issuer",
        "airbridge",
        "unset, Airflow signs tokens with an empty list as issuer, which PyJWT refuses from 2.11 on",
    ),
    Setting(
        "core",
        "sensitive_var_conn_names",
        SENSITIVE_NAMES,
        "names that later versions of Airflow mask; part of a name is enough",
    ),
    Setting(
        "logging", "logging_config_class", LOGGING_CONFIG, "reads task logs from the region that holds them"
    ),
    Setting(
        "usage_data_collection",
        "enabled",
        "False",
        "a control plane makes no outbound call beyond its own work",
    ),
)

# Settings that Airflow reads when it creates its database, and never again.
AT_CREATION = tuple(
    setting
    for setting in RECOMMENDED
    if setting.option in {"external_db_managers", "default_pool_task_slot_count"}
)


@dataclass(frozen=True)
class Bundle:
    """A DAG bundle. `source` is what `airbridge.executor.bundles.source` reads: a folder, Git, or pushes."""

    name: str
    source: Mapping[str, str]
    refresh_seconds: int = 30
    #: True if one file that does not parse refuses the whole snapshot; else it is an import error, as in
    #: Airflow.
    refuse_broken: bool = True


def dag_bundles(bundles: Iterable[Bundle]) -> Setting:
    """Return the setting that publishes these bundles to every region, by digest."""
    config = [
        {
            "name": bundle.name,
            "classpath": BUNDLE,
            "kwargs": {
                "source": dict(bundle.source),
                "refresh_interval": bundle.refresh_seconds,
                "refuse_broken": bundle.refuse_broken,
            },
        }
        for bundle in bundles
    ]
    return Setting(
        "dag_processor", "dag_bundle_config_list", json.dumps(config), "DAG code is distributed by digest"
    )


def merged(*groups: Iterable[Setting]) -> tuple[Setting, ...]:
    """Join groups of settings; the later of two values for one option wins."""
    options = {(setting.section, setting.option): setting for group in groups for setting in group}
    return tuple(options.values())


def as_environment(settings: Iterable[Setting]) -> dict[str, str]:
    """Return the settings as environment variables."""
    return {setting.variable: setting.value for setting in settings}


def as_config(settings: Iterable[Setting]) -> str:
    """Return the settings as the text of an airflow.cfg."""
    parser = configparser.RawConfigParser()
    for setting in settings:
        if not parser.has_section(setting.section):
            parser.add_section(setting.section)
        # Airflow interpolates `%` in values that it reads from a file.
        parser.set(setting.section, setting.option, setting.value.replace("%", "%%"))
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()
