"""What a runner needs to know, frozen. The agent builds it from the worker's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.runner import walls
from airbridge.edge_worker.runner.user import TaskUser
from airbridge.executor import landlock

INHERITED: Final = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")  # fmt: skip
"""What tasks get of the agent's environment: where things are and how to write them; nothing that could be a secret."""

_NEVER: Final = ("AIRBRIDGE_",)
"""Prefixes of the agent's own settings: a task may not be given them."""

_FORBIDDEN: Final = (
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "AIRFLOW__CORE__SQL_ALCHEMY_CONN",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__API__SECRET_KEY",
)
"""The control plane's secrets: nothing on an edge host can mint a task token or open the database."""


@dataclass(frozen=True)
class RunnerSettings:
    """How tasks run on this worker.

    `task_env` is added to the environment of every task: Airflow configuration (``AIRFLOW__*``) and whatever
    DAG code reads. `agent_env` is the agent's environment, of which only `INHERITED` is passed on.
    """

    airflow_home: Path
    worker_name: str
    task_env: Mapping[str, str] = field(default_factory=dict)
    agent_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    preload: tuple[str, ...] = ()
    """Modules that the zygote loads besides Airflow's own: heavy ones that many DAG files import."""
    max_templates: int = 16
    template_memory_bytes: int = 1024 * 1024 * 1024
    """How much memory (PSS) the parsed DAG files of all templates may take together."""
    parse_ttl_seconds: float = 600.0
    """How old a parsed DAG file may become before it is parsed again."""
    start_timeout_seconds: float = 120.0
    """How long a zygote may take to load Airflow, and a supervisor to come up."""
    kill_grace_seconds: float = 5.0
    """How long a task that is stopped has between SIGTERM and SIGKILL."""
    hidden: tuple[Path, ...] = ()
    """What user code must not see, besides other tasks' working directories: the worker's state, its join token."""
    landlock: bool = True
    """Whether Landlock is used where the kernel has it."""
    task_user: TaskUser | None = None
    """The user that everything but the agent runs as; None for the agent's own."""

    def __post_init__(self) -> None:
        _at_least("max_templates", self.max_templates, 1)
        _at_least("template_memory_bytes", self.template_memory_bytes, 1)
        _at_least("parse_ttl_seconds", self.parse_ttl_seconds, 0)
        _at_least("start_timeout_seconds", self.start_timeout_seconds, 1)
        _at_least("kill_grace_seconds", self.kill_grace_seconds, 0)
        for name in self.task_env:
            if name in _FORBIDDEN or name.startswith(_NEVER):
                raise SettingsError(
                    f"task_env: {name} would hand a secret of the control plane or the agent to every task; remove it"
                )

    @property
    def tasks_dir(self) -> Path:
        """Where tasks have their working directories."""
        return self.airflow_home.parent / "t"

    @property
    def walls(self) -> walls.Walls:
        """The walls around templates, supervisors and tasks, as this kernel can build them."""
        version = landlock.abi() if self.landlock else 0
        return walls.build(self.hidden, self.airflow_home, self.tasks_dir, version=version)

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the runner's processes, and so of every task."""
        inherited = {name: self.agent_env[name] for name in INHERITED if name in self.agent_env}
        return {**inherited, **self.task_env, "AIRFLOW_HOME": str(self.airflow_home)}


def _at_least(name: str, value: float, bound: float) -> None:
    if value < bound:
        raise SettingsError(f"{name} is {value}; it must be at least {bound}")
