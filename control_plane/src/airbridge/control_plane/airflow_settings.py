"""The Airflow settings that AirBridge recommends, each with its reason: the one place for them.

Local mode and the images apply them. Anything that depends on a deployment (URLs,
keys, the database) is added by whoever deploys. `as_environment` renders them for a container, `as_config` as airflow.cfg.
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
        """The environment variable that Airflow reads this option from."""
        return f"AIRFLOW__{self.section.upper()}__{self.option.upper()}"


EXECUTOR = "airbridge.executor.EdgeExecutor"
LEDGER_MANAGER = "airbridge.executor.ledger.manager.LedgerDBManager"
BUNDLE = "airbridge.executor.bundle.AirBridgeBundle"
LOGGING_CONFIG = "airbridge.control_plane.logging_config.LOGGING_CONFIG"

RECOMMENDED = (
    Setting("core", "executor", EXECUTOR, "tasks run on edge workers; add others after a comma"),
    Setting("core", "load_examples", "False", "Airflow's examples are not this platform's work"),
    Setting(
        "core", "parallelism", "1024", "bounds a whole fleet, not one machine; each region's slots bound it"
    ),
    Setting("core", "max_active_tasks_per_dag", "256", "as above; Airflow's default of 16 suits one machine"),
    Setting(
        "core",
        "default_pool_task_slot_count",
        "1024",
        "as above; 128 by default. Read once, when the database is made: later it is `airflow pools set default_pool`",
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
        "task_queued_timeout",
        "86400",
        "a task may wait for a region to scale from zero or to come back; 600 s by default",
    ),
    Setting("logging", "logging_config_class", LOGGING_CONFIG, "reads task logs from the region they lie in"),
    Setting(
        "usage_data_collection", "enabled", "False", "a control plane makes no call that is not its work"
    ),
)

AT_CREATION = tuple(
    setting
    for setting in RECOMMENDED
    if setting.section == "database" or setting.option == "default_pool_task_slot_count"
)
"""What Airflow reads when it makes its database, and not again."""


@dataclass(frozen=True)
class Bundle:
    """A DAG bundle. `source` is what `airbridge.executor.bundle_source` reads: a folder, Git, or pushes."""

    name: str
    source: Mapping[str, str]
    refresh_seconds: int = 30
    refuse_broken: bool = True
    """Whether one file that does not parse holds back the whole snapshot. False: it is an import error, as ever."""


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
        "dag_processor", "dag_bundle_config_list", json.dumps(config), "DAG code travels by its digest"
    )


def merged(*groups: Iterable[Setting]) -> tuple[Setting, ...]:
    """Join groups of settings; of two for one option the later holds."""
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
