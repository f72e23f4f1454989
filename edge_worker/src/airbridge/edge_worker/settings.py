"""The worker's settings: read once, from `AIRBRIDGE_WORKER_*` variables or a TOML file, into one frozen object."""

from __future__ import annotations

import json
import os
import re
import socket
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from airbridge.core.protocol import Name
from airbridge.edge_worker.exceptions import SettingsError

ENV_PREFIX = "AIRBRIDGE_WORKER_"
MIB = 1024 * 1024

Seconds = Annotated[float, Field(gt=0)]
Mebibytes = Annotated[int, Field(ge=1)]


class JoinMethod(StrEnum):
    """Proof by which a worker gets its first identity."""

    TOKEN = "token"  # noqa: S105 - a method's name
    AWS_IAM = "aws_iam"
    BOUND_KEY = "bound_key"
    OIDC = "oidc"
    KUBERNETES = "kubernetes"


# Methods whose token is replaced while the worker runs.
_RENEWED = frozenset({JoinMethod.OIDC, JoinMethod.KUBERNETES})
# Parents of a path that lies in a directory which is not one of the system's own.
_OWN_DEPTH = 3


class TaskSandbox(StrEnum):
    """Use of Landlock between tasks (see the worker's README)."""

    #: Where the kernel has it.
    AUTO = "auto"
    #: A kernel without it is refused.
    REQUIRE = "require"
    OFF = "off"


class TaskCgroups(StrEnum):
    """Use of cgroups for the limits of tasks."""

    #: Where this worker may make them.
    AUTO = "auto"
    #: A host where it may not is refused.
    REQUIRE = "require"
    OFF = "off"


def default_name() -> str:
    """Return the host's name as a DNS label, the default of `name`."""
    # 63 is the longest DNS label.
    label = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:63].strip("-")
    return label or "worker"


class WorkerSettings(BaseSettings):
    """Settings of one worker. A TOML file takes precedence over the environment."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    gateway_url: str = Field(description="HTTPS URL of the gateway's port for workers")
    ca_file: Path = Field(description="PEM of the roots to which the gateway's certificate must chain")
    region: Name = Field(description="Region of this worker, as in the region catalogue")
    pool: Name = Field(default="default", description="Pool of the region that this worker serves")
    name: Name = Field(
        default_factory=default_name,
        description="Name of the worker, unique in the deployment; keep it across restarts. Default: the host name",
    )
    slots: int = Field(default=8, ge=1, description="Sum of pool_slots of the tasks that run concurrently")
    prefetch: int = Field(
        default=0, ge=0, description="Slots of tasks that are claimed before a slot is free"
    )
    state_dir: Path = Field(
        default=Path("/var/lib/airbridge-worker"),
        description="Directory of journal, logs, snapshots and status socket; keep it across restarts",
    )
    join_method: JoinMethod = Field(
        default=JoinMethod.TOKEN,
        description="Proof of identity at enrolment: a join token, the host's IAM role, the host's key that is bound to its name, "
        "or a token of an OpenID Connect issuer or of a Kubernetes service account",
    )
    join_token_file: Path | None = Field(
        default=None,
        description="File with the join token, read at each enrolment; needed by join_method 'token', and by 'bound_key' until "
        "the key is bound, unless an operator binds it. With 'oidc' and 'kubernetes' the file with the issuer's token",
    )
    image_digest: str | None = Field(
        default=None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="Digest of the image that this worker runs from, reported to the control plane",
    )

    task_env: dict[str, str] = Field(
        default_factory=dict,
        description="Variables added to the environment of every task (a JSON object in the variable); no secrets of the "
        "control plane or the worker. A table in the file adds to the variable's",
    )
    task_env_from: tuple[str, ...] = Field(
        default=("AIRFLOW__*",),
        description="Variables of the worker's own environment that every task gets: names or patterns among `AIRFLOW__*`, "
        "`AIRFLOW_VAR_*` and `AIRFLOW_CONN_*`. Variables and connections are then readable whatever the policy says",
    )
    task_sandbox: TaskSandbox = Field(
        default=TaskSandbox.AUTO,
        description="Landlock sandbox of the tasks: where the kernel offers it, required, or off",
    )
    task_user: str | None = Field(
        default=None, description="User of the task processes; needs an agent that is root"
    )
    hidden_paths: tuple[Path, ...] = Field(
        default=(),
        description="Paths hidden from tasks, in addition to the worker's own files (needs Landlock)",
    )
    slot_memory_mib: Mebibytes | None = Field(
        default=None,
        description="Memory of one slot: a task may use that of its slots, or what it requests. Unset: no limit",
    )
    slot_cpus: Annotated[float, Field(ge=0.01)] | None = Field(
        default=None, description="Processors of one slot, in cores (needs cgroups). Unset: no limit"
    )
    slot_processes: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="Processes and threads of one slot (needs cgroups). Unset: no limit"
    )
    slot_disk_mib: Mebibytes | None = Field(
        default=None,
        description="Space of one slot in a task's working directory, and the size of any file that it writes. Unset: no limit",
    )
    task_cgroups: TaskCgroups = Field(
        default=TaskCgroups.AUTO,
        description="Cgroups that hold tasks to their limits: where this worker may make them, required, or off",
    )
    max_templates: int = Field(
        default=16,
        ge=1,
        description="Maximum number of processes with a parsed DAG file from which tasks are forked",
    )
    template_memory_mib: Mebibytes = Field(
        default=1024, description="Memory of all templates above which the least recently used ones end"
    )
    parse_ttl_seconds: Seconds = Field(default=600.0, description="Age at which a DAG file is parsed again")
    task_kill_grace_seconds: Annotated[float, Field(ge=0)] = Field(
        default=5.0, description="Time between SIGTERM and SIGKILL of a task that is stopped"
    )

    heartbeat_seconds: Seconds = Field(
        default=10.0, description="Heartbeat interval until the gateway sends its own"
    )
    poll_seconds: Annotated[int, Field(ge=0, le=20)] = Field(
        default=20, description="Long-polling time of the work queue"
    )
    request_timeout_seconds: Seconds = Field(
        default=20.0, description="Time after which a request to the gateway counts as lost and is retried"
    )
    connect_timeout_seconds: Seconds = Field(
        default=5.0, description="Timeout of a connection to the gateway"
    )
    retry_base_seconds: Seconds = Field(
        default=0.2, description="Upper limit of the random pause before the first retry; it doubles"
    )
    retry_cap_seconds: Seconds = Field(
        default=15.0, description="Largest upper limit of the random pause between retries"
    )
    cut_off_after_seconds: Seconds = Field(
        default=5.0,
        description="Silence after which writes are accepted locally and reads come from the cache",
    )
    linger_seconds: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="Time that a write may wait to be sent with others, if no task waits for it"
    )
    cache_ttl_seconds: Seconds = Field(
        default=600.0, description="Age up to which a variable or connection is served during a cut"
    )
    cancel_grace_seconds: Seconds = Field(default=60.0, description="From a task's cancellation to SIGKILL")
    drain_flush_seconds: Annotated[float, Field(ge=0)] = Field(
        default=30.0,
        description="Time that a drained worker tries to report remaining results before it exits",
    )

    metrics_port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        default=None, description="Port of the Prometheus endpoint. Unset: none"
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address of the Prometheus endpoint, which has neither TLS nor a password; 0.0.0.0 in a pod",
    )

    journal_max_mib: Mebibytes = Field(
        default=256, description="Maximum size of the journal; above 80 % nothing new is claimed"
    )
    journal_fsync: bool = Field(
        default=True,
        description="Sync the journal before a write is acknowledged. False loses results at a power cut: for tests only",
    )
    reserve_mib: Annotated[int, Field(ge=0)] = Field(
        default=16,
        description="Size of a file that is deleted to make space for results when the disk is full",
    )
    min_free_mib: Annotated[int, Field(ge=0)] = Field(
        default=256, description="Free space of the disk below which nothing new is claimed"
    )
    logs_max_mib: Mebibytes = Field(
        default=2048, description="Size of unshipped logs above which nothing new is claimed"
    )
    bundles_max_mib: Mebibytes = Field(default=1024, description="Maximum size of the cache of snapshots")
    log_chunk_seconds: Seconds = Field(
        default=5.0, description="Interval at which new log lines of a running task are shipped"
    )
    log_chunk_max_mib: Mebibytes = Field(default=8, description="Maximum size of one chunk of a shipped log")

    @field_validator("gateway_url")
    @classmethod
    def _https(cls, value: str) -> str:
        if not value.startswith("https://"):
            raise ValueError("must begin with https://")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _join_token_named(self) -> Self:
        path = self.join_token_file
        if self.join_method in {JoinMethod.TOKEN, *_RENEWED} and path is None:
            raise ValueError(
                f"join_method '{self.join_method}' needs join_token_file, the path of a file that holds the token"
            )
        if self.join_method in _RENEWED and path is not None and len(path.absolute().parents) < _OWN_DEPTH:
            raise ValueError(
                f"join_token_file is {str(path)!r}: with join_method '{self.join_method}' it must be in a directory of its own, such as "
                "/run/airbridge-join/token, because tasks see nothing of that directory"
            )
        return self

    @property
    def hidden_from_tasks(self) -> tuple[Path, ...]:
        """The worker's own files, and what else is hidden.

        A token that its issuer replaces is another file each time: its directory is hidden. So is that of a link, as in the volumes
        of Kubernetes, which exchange the directory that links lead to.
        """
        path = self.join_token_file
        if path is None:
            return (self.state_dir, *self.hidden_paths)
        replaced = self.join_method in _RENEWED or path.is_symlink()
        return (self.state_dir, path.parent if replaced else path, *self.hidden_paths)

    @property
    def journal_file(self) -> Path:
        """The journal."""
        return self.state_dir / "journal.sqlite"

    @property
    def rejoin_key_file(self) -> Path:
        """Key by which this host may enrol its name anew."""
        return self.state_dir / "rejoin.key"

    @property
    def join_count_file(self) -> Path:
        """Count of this host's joins by its key."""
        return self.state_dir / "joins.json"

    @property
    def airflow_home(self) -> Path:
        """AIRFLOW_HOME of the tasks."""
        return self.state_dir / "airflow"

    @property
    def status_socket(self) -> Path:
        """UNIX socket of the running agent's status."""
        return self.state_dir / "status.sock"

    @property
    def logs_dir(self) -> Path:
        """Directory of task logs until they are shipped."""
        return self.state_dir / "logs"

    @property
    def bundles_dir(self) -> Path:
        """The cache of unpacked DAG snapshots."""
        return self.state_dir / "bundles"


def load(config: Path | None = None, **overrides: Any) -> WorkerSettings:
    """Read the settings. Raises `SettingsError` naming every setting that is wrong and what would be right."""
    try:
        return WorkerSettings(**_with_both_task_envs({**_read_file(config), **overrides}))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(item) for item in error.errors())) from None


def environment() -> dict[str, str]:
    """Return this process's environment; the runner passes a few harmless variables of it on."""
    return dict(os.environ)


def _with_both_task_envs(values: dict[str, Any]) -> dict[str, Any]:
    """Add the variables of the environment's `task_env` to those of the file, which win."""
    text = os.environ.get(f"{ENV_PREFIX}TASK_ENV")
    if text is None or not isinstance(values.get("task_env"), dict):
        return values
    try:
        below = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"task_env ({ENV_PREFIX}TASK_ENV) is not JSON: {error}") from error
    if not isinstance(below, dict):
        raise SettingsError(f"task_env ({ENV_PREFIX}TASK_ENV) is {text!r}: it must be a JSON object")
    return {**values, "task_env": {**below, **values["task_env"]}}


def _read_file(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        return tomllib.loads(config.read_text())
    except OSError as error:
        raise SettingsError(
            f"--config {config}: {error.strerror}; it must be a readable TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--config {config}: not TOML: {error}") from error


def _explain(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if not name:
        return str(message)
    variable = f"{ENV_PREFIX}{name.upper()}"
    if item["type"] == "missing":
        return f"{name} ({variable}) is not set; it is required"
    if item["type"] == "extra_forbidden":
        known = ", ".join(sorted(WorkerSettings.model_fields))
        return f"{name} is not a setting; the settings are: {known}"
    return f"{name} ({variable}) is {item['input']!r}: {message}"
