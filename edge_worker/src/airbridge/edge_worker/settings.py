"""The worker's settings: read once, from `AIRBRIDGE_WORKER_*` variables or a TOML file, into one frozen object."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from airbridge.edge_worker.exceptions import SettingsError
from airbridge.executor.protocol import Name

ENV_PREFIX = "AIRBRIDGE_WORKER_"
MIB = 1024 * 1024

Seconds = Annotated[float, Field(gt=0)]
Mebibytes = Annotated[int, Field(ge=1)]


class JoinMethod(StrEnum):
    """How a worker proves, once, that it may have an identity."""

    TOKEN = "token"  # noqa: S105 - a method's name
    AWS_IAM = "aws_iam"


class TaskWalls(StrEnum):
    """Whether tasks are kept apart by Landlock (see the worker's README)."""

    AUTO = "auto"
    """Where the kernel has it."""
    REQUIRE = "require"
    """A kernel without it is refused."""
    OFF = "off"


def default_name() -> str:
    """Return the host's name as a DNS label: what the worker is called unless it is told otherwise."""
    label = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:63].strip("-")
    return label or "worker"


class WorkerSettings(BaseSettings):
    """Where the worker is, whom it trusts, and its bounds. A TOML file wins over the environment."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    gateway_url: str = Field(description="https URL of the gateway's edge listener")
    ca_file: Path = Field(description="PEM of the CA that the gateway's certificate must chain to")
    region: Name
    pool: Name = "default"
    name: Name = Field(default_factory=default_name, description="The worker's id; keep it across restarts")
    slots: int = Field(default=8, ge=1, description="Sum of pool_slots of the tasks that run at once")
    prefetch: int = Field(default=0, ge=0, description="Slots' worth of tasks claimed ahead of a free slot")
    state_dir: Path = Path("/var/lib/airbridge-worker")
    join_method: JoinMethod = JoinMethod.TOKEN
    join_token_file: Path | None = None
    image_digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")

    task_env: dict[str, str] = Field(
        default_factory=dict,
        description="Environment of every task (a JSON object in the variable); no secrets",
    )
    task_walls: TaskWalls = TaskWalls.AUTO
    task_user: str | None = Field(
        default=None, description="User that tasks run as; needs an agent that may change users"
    )
    hidden_paths: tuple[Path, ...] = Field(
        default=(), description="What tasks must not see, besides the worker's own files (needs Landlock)"
    )
    max_templates: int = Field(default=16, ge=1, description="Parsed DAG files kept ready to fork from")
    template_memory_mib: Mebibytes = 1024
    parse_ttl_seconds: Seconds = Field(default=600.0, description="Age at which a DAG file is parsed again")
    task_kill_grace_seconds: Annotated[float, Field(ge=0)] = Field(
        default=5.0, description="What a task that is stopped has between SIGTERM and SIGKILL"
    )

    heartbeat_seconds: Seconds = Field(default=10.0, description="Until the gateway names its own interval")
    poll_seconds: Annotated[int, Field(ge=0, le=20)] = 20
    request_timeout_seconds: Seconds = 20.0
    connect_timeout_seconds: Seconds = 5.0
    retry_base_seconds: Seconds = 0.2
    retry_cap_seconds: Seconds = 15.0
    cut_off_after_seconds: Seconds = Field(
        default=5.0,
        description="Silence after which writes are accepted locally and reads come from the cache",
    )
    linger_seconds: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="How long a write that nobody waits for may wait for company"
    )
    cache_ttl_seconds: Seconds = Field(
        default=600.0, description="Age up to which a variable or connection is served during a cut"
    )
    cancel_grace_seconds: Seconds = Field(default=60.0, description="From a task's cancellation to SIGKILL")
    drain_flush_seconds: Annotated[float, Field(ge=0)] = Field(
        default=30.0, description="How long a drained worker tries to report what is left before it exits"
    )

    metrics_port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        default=None, description="Loopback port of the Prometheus endpoint; unset: none"
    )

    journal_max_mib: Mebibytes = 256
    journal_fsync: bool = Field(default=True, description="False loses results at a power cut: tests only")
    reserve_mib: Annotated[int, Field(ge=0)] = Field(
        default=16, description="Space kept by a file that is given up for results when the disk is full"
    )
    min_free_mib: Annotated[int, Field(ge=0)] = Field(
        default=256, description="Below it nothing new is claimed"
    )
    logs_max_mib: Mebibytes = Field(
        default=2048, description="Unshipped logs above it: nothing new is claimed"
    )
    bundles_max_mib: Mebibytes = 1024
    log_chunk_seconds: Seconds = Field(
        default=5.0, description="How often a running task's new log is shipped"
    )
    log_chunk_max_mib: Mebibytes = 8

    @field_validator("gateway_url")
    @classmethod
    def _https(cls, value: str) -> str:
        if not value.startswith("https://"):
            raise ValueError("must begin with https://")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _join_token_named(self) -> Self:
        if self.join_method is JoinMethod.TOKEN and self.join_token_file is None:
            raise ValueError(
                "join_method 'token' needs join_token_file, the path of a file that holds the token"
            )
        return self

    @property
    def hidden_from_tasks(self) -> tuple[Path, ...]:
        """The worker's own files, and what else is hidden."""
        token = () if self.join_token_file is None else (self.join_token_file,)
        return (self.state_dir, *token, *self.hidden_paths)

    @property
    def journal_file(self) -> Path:
        """The journal."""
        return self.state_dir / "journal.sqlite"

    @property
    def airflow_home(self) -> Path:
        """AIRFLOW_HOME of the tasks."""
        return self.state_dir / "airflow"

    @property
    def status_socket(self) -> Path:
        """Where the running agent tells its status."""
        return self.state_dir / "status.sock"

    @property
    def logs_dir(self) -> Path:
        """Where task logs are written until they are shipped."""
        return self.state_dir / "logs"

    @property
    def bundles_dir(self) -> Path:
        """The cache of unpacked DAG snapshots."""
        return self.state_dir / "bundles"


def load(config: Path | None = None, **overrides: Any) -> WorkerSettings:
    """Read the settings. Raises `SettingsError` naming every setting that is wrong and what would be right."""
    try:
        return WorkerSettings(**{**_read_file(config), **overrides})
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(item) for item in error.errors())) from None


def environment() -> dict[str, str]:
    """Return this process's environment; the runner passes a few harmless variables of it on."""
    return dict(os.environ)


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
