"""Settings of the runner, frozen; the agent builds them from the worker's settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Final

from airbridge.core.sandbox import landlock, mounts
from airbridge.core.task_options import CERTIFICATE_VARIABLES, of_variable, why_never, why_refused, why_secret
from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.runner.limits.cgroups import Cgroups, NoCgroups
from airbridge.edge_worker.runner.limits.limits import Share
from airbridge.edge_worker.runner.sandbox import view
from airbridge.edge_worker.runner.sandbox.sandbox import Sandbox, build, real
from airbridge.edge_worker.runner.sandbox.task_user import TaskUser

# Variables of the agent's environment that tasks get: paths, locale and region; nothing that could be a secret.
INHERITED: Final = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "AWS_REGION", "AWS_DEFAULT_REGION", *CERTIFICATE_VARIABLES)  # fmt: skip

# Bytes of a UNIX socket's path on Linux, and of a working directory's two names beneath `tasks_dir`, with their slashes.
_SOCKET_PATH: Final = 107
_WORKING_DIR: Final = len("/12345678/12345678/")
# What tools put beneath TMPDIR: multiprocessing's Manager takes 31 bytes.
NEEDED_FOR_SOCKETS: Final = 40

# Prefixes of the agent's own settings: a task may not be given them.
_NEVER: Final = ("AIRBRIDGE_",)

# Variables of the agent's environment that were given to it for its tasks, if for anything.
_FOR_TASKS: Final = ("AIRFLOW__", "AIRFLOW_VAR_", "AIRFLOW_CONN_")


@dataclass(frozen=True)
class RunnerSettings:
    """Settings of one worker's runner.

    `task_env` is added to the environment of every task: Airflow configuration (``AIRFLOW__*``) and variables that
    DAG code reads. `agent_env` is the agent's environment, of which `INHERITED` is passed on, and what `task_env_from`
    names; `docs/reference/task-settings.md` has the rule.
    """

    airflow_home: Path
    worker_name: str
    task_env: Mapping[str, str] = field(default_factory=dict)
    agent_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    task_env_from: tuple[str, ...] = ("AIRFLOW__*",)
    #: Modules that the zygote loads besides Airflow's own: heavy ones that many DAG files import.
    preload: tuple[str, ...] = ()
    max_templates: int = 16
    #: Memory (PSS) that all templates together may take.
    template_memory_bytes: int = 1024 * 1024 * 1024
    #: Age at which a DAG file is parsed again.
    parse_ttl_seconds: float = 600.0
    #: Time for a zygote to load Airflow, and for a supervisor to start.
    start_timeout_seconds: float = 120.0
    #: Time between SIGTERM and SIGKILL of a task that is stopped.
    kill_grace_seconds: float = 5.0
    #: Paths hidden from user code, besides other tasks' working directories: the worker's state, its join
    #: token.
    hidden: tuple[Path, ...] = ()
    #: Whether Landlock is used where the kernel has it.
    landlock: bool = True
    #: The user that everything but the agent runs as; None for the agent's own.
    task_user: TaskUser | None = None
    #: What a slot's task may use, and how many slots there are.
    share: Share = field(default_factory=Share)
    #: Where tasks get cgroups, or why they do not.
    cgroups: Cgroups | NoCgroups = field(default_factory=lambda: NoCgroups("they are not wanted"))
    #: Directories of cgroups that tasks may read, and not write to.
    cgroup_mounts: tuple[Path, ...] = ()
    #: A short link to `tasks_dir`; the runner makes it when it starts, if there is need of one.
    tasks_link: Path | None = None

    def __post_init__(self) -> None:
        _at_least("max_templates", self.max_templates, 1)
        _at_least("template_memory_bytes", self.template_memory_bytes, 1)
        _at_least("parse_ttl_seconds", self.parse_ttl_seconds, 0)
        _at_least("start_timeout_seconds", self.start_timeout_seconds, 1)
        _at_least("kill_grace_seconds", self.kill_grace_seconds, 0)
        for name in self.task_env:
            why = _why_never(name)
            if why is not None:
                raise SettingsError(f"task_env: tasks cannot be given {name}, because {why}; remove it")

    @property
    def tasks_dir(self) -> Path:
        """Directory of the tasks' working directories."""
        return tasks_dir(self.airflow_home)

    @property
    def sandbox(self) -> Sandbox:
        """Sandbox of templates, supervisors and tasks, as far as this kernel supports it."""
        version = landlock.abi() if self.landlock else 0
        links = (self.tasks_link.parent,) if self.tasks_link else ()
        return build(
            (*self.hidden, *links, *self.cgroup_mounts),
            self.airflow_home,
            self.tasks_dir,
            version=version,
            can_mount=self.can_mount,
            tasks_link=self.tasks_link,
            readable=self.cgroup_mounts,
        )

    @cached_property
    def can_mount(self) -> bool:
        """True if tasks can have a view of the file system, in which what is hidden is covered."""
        return self.landlock and mounts.available(self.task_user.uid if self.task_user else None)

    @property
    def beneath_shared(self) -> bool:
        """True if the tasks' working directories lie beneath a directory that tasks may write to."""
        return self.can_mount and bool(view.shared_above(Path(real(self.tasks_dir))))

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the runner's processes, and so of every task."""
        return {**self._passed(), **self.task_env, "AIRFLOW_HOME": str(self.airflow_home)}

    def with_variables(self, variables: Mapping[str, str]) -> RunnerSettings:
        """Return these settings with more variables for tasks; those of `task_env` keep their values."""
        return replace(self, task_env={**variables, **self.task_env}) if variables else self

    def overridden(self) -> list[str]:
        """Return the variables that tasks would get without `task_env`, and that it gives another value."""
        passed = self._passed()
        return sorted(
            name for name, value in self.task_env.items() if name in passed and passed[name] != value
        )

    def not_passed(self) -> dict[str, str]:
        """Return the variables that the agent has for tasks and they do not get, and why."""
        return {
            name: why
            for name, value in sorted(self.agent_env.items())
            if name.startswith(_FOR_TASKS) and name not in self.task_env
            if (why := self._why_not_passed(name, value)) is not None
        }

    def _passed(self) -> dict[str, str]:
        return {
            name: value
            for name, value in self.agent_env.items()
            if name in INHERITED or (name.startswith(_FOR_TASKS) and not self._why_not_passed(name, value))
        }

    def _why_not_passed(self, name: str, value: str) -> str | None:
        never = _why_never(name)
        if never is not None:
            return f"{never}; remove it from the worker's environment"
        option = of_variable(name)
        if option is not None and (why := why_refused(*option)) is not None:
            return f"{why}; set it in task_env if tasks must have another value"
        if not any(fnmatchcase(name, pattern) for pattern in self.task_env_from):
            return (
                "task_env_from does not name it; name it there, and every task on this worker reads it, whatever the "
                "policy says"
            )
        secret = option and name not in self.task_env_from and why_secret(option[1], value)
        return (
            f"{secret}; name it in task_env_from, without a pattern, to give it to every task"
            if secret
            else None
        )


def _why_never(variable: str) -> str | None:
    if variable.startswith(_NEVER):
        return "it is a setting of the agent"
    option = of_variable(variable)
    return None if option is None else why_never(*_without_suffix(*option))


def _without_suffix(section: str, option: str) -> tuple[str, str]:
    """Return the option that a variable sets, directly or by a command or a secrets backend."""
    return section, option.removesuffix("_cmd").removesuffix("_secret")


def tasks_dir(airflow_home: Path) -> Path:
    """Return the directory of the tasks' working directories."""
    return airflow_home.parent / "t"


def room_for_sockets(airflow_home: Path) -> int:
    """Return how long the name of a UNIX socket beneath a task's TMPDIR may be, in bytes. It may be negative."""
    return _SOCKET_PATH - len(os.fsencode(os.path.realpath(tasks_dir(airflow_home)))) - _WORKING_DIR


def _at_least(name: str, value: float, bound: float) -> None:
    if value < bound:
        raise SettingsError(f"{name} is {value}; it must be at least {bound}")
