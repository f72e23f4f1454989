"""The control plane's settings: section ``[airbridge]`` of Airflow's configuration, read once into one frozen object.

Each field carries its description, so that the section that Airflow is told of
(`airbridge.executor.provider`) and the object that is read cannot differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

from airbridge.executor.exceptions import ConfigurationError

SECTION = "airbridge"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Getter = Callable[[str], str | None]
"""Gives the text of an option, or None where it is not set."""


def _about(description: str, *, example: str | None = None, minimum: float | None = None) -> dict[str, Any]:
    return {"description": description, "example": example, "minimum": minimum}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the control plane can be told. Durations are in seconds unless the name says otherwise."""

    regions_file: Path = field(
        metadata=_about(
            "The region catalogue (TOML): regions, their pools, queues and buckets, and which data lies where.",
            example="/etc/airbridge/regions.toml",
        )
    )
    secrets_dir: Path = field(
        metadata=_about(
            "Directory of the control plane's keys, made by 'airbridge init'. Readable by its owner only.",
            example="/etc/airbridge/secrets",
        )
    )
    default_queue: str | None = field(
        default=None,
        metadata=_about(
            "Where tasks go that name neither a queue nor a hint: 'region' or 'pool@region'. "
            "Unset: the default pool of the catalogue's home region.",
            example="us-east-1",
        ),
    )
    fallback_after: float = field(
        default=60.0,
        metadata=_about(
            "How long a task with a fallback waits unclaimed before it moves to the next region.",
            minimum=1.0,
        ),
    )
    lost_after: float = field(
        default=900.0,
        metadata=_about(
            "How long a running task may go without a heartbeat of its worker before it is fenced off and failed. "
            "A cut is survived if it is shorter by a heartbeat and the time to reconnect.",
            minimum=1.0,
        ),
    )
    stop_after: float | None = field(
        default=None,
        metadata=_about(
            "How long a cut may last before the worker stops the task itself. Unset: it runs on.",
            example="300",
            minimum=1.0,
        ),
    )
    replace: bool = field(
        default=True,
        metadata=_about(
            "Whether a lost attempt may be retried. False fails the task for good: work that must never run twice.",
        ),
    )
    warm: bool = field(
        default=True,
        metadata=_about(
            "Whether tasks may start from a process that has parsed their DAG file already.",
        ),
    )
    heartbeat_interval: float = field(
        default=10.0, metadata=_about("How often a worker sends its one heartbeat.", minimum=0.1)
    )
    lease_seconds: float = field(
        default=60.0,
        metadata=_about(
            "How long a grant lasts without a heartbeat. Several times heartbeat_interval.",
            minimum=1.0,
        ),
    )
    worker_alive_seconds: float = field(
        default=90.0,
        metadata=_about(
            "A worker that has not been heard of for longer is not counted on for new work.",
            minimum=1.0,
        ),
    )
    message_ttl: float = field(
        default=900.0,
        metadata=_about(
            "How long a work item on a queue is good for. One that expires unclaimed is sent anew.",
            minimum=5.0,
        ),
    )
    outbox_floor: int = field(
        default=10,
        metadata=_about(
            "Work items on the queue of a pool that has no live worker, so that an autoscaling group sees its backlog.",
            minimum=1,
        ),
    )
    outbox_per_slot: float = field(
        default=2.0,
        metadata=_about(
            "Unclaimed work items on a pool's queue for each slot of its live workers. "
            "Higher feeds workers further ahead; lower lets priority count for more under backlog.",
            minimum=0.1,
        ),
    )
    outbox_interval: float = field(
        default=5.0,
        metadata=_about(
            "How often the outbox looks for work that nobody woke it for (rows of another scheduler, expired messages).",
            minimum=0.05,
        ),
    )
    outbox_blocked_interval: float = field(
        default=0.2,
        metadata=_about(
            "How often the outbox looks while work waits only for room on a queue.", minimum=0.01
        ),
    )
    outbox_backoff_base: float = field(
        default=0.5,
        metadata=_about(
            "First delay after a failed send; it doubles with each failure, with full jitter.",
            minimum=0.01,
        ),
    )
    outbox_backoff_limit: float = field(
        default=60.0, metadata=_about("Longest delay between attempts to send to a region.", minimum=0.1)
    )
    scaling_namespace: str | None = field(
        default=None,
        metadata=_about(
            "The CloudWatch namespace, in each region, that pools' backlogs are published under for autoscaling. "
            "Unset: nothing is published.",
            example="AirBridge",
        ),
    )
    scaling_interval: float = field(
        default=10.0,
        metadata=_about(
            "How often backlogs are published; new work is told at once besides.",
            minimum=1.0,
        ),
    )
    metrics_namespace: str | None = field(
        default=None,
        metadata=_about(
            "The CloudWatch namespace that a gateway's metrics are to be in: its log then has them every minute, as lines in "
            "CloudWatch's embedded metric format. Unset: no such lines.",
            example="AirBridge",
        ),
    )
    keeper_interval: float = field(
        default=5.0,
        metadata=_about(
            "How often lost attempts are fenced and the heartbeats of leased tasks are kept fresh.",
            minimum=0.05,
        ),
    )
    retention_days: float = field(
        default=30.0,
        metadata=_about("How long settled work items, their records and events are kept.", minimum=0.01),
    )
    traces_endpoint: str | None = field(
        default=None,
        metadata=_about(
            "Where spans are sent: the OTLP/HTTP URL of an OpenTelemetry collector. Unset: Airflow's own collector "
            "where [traces] otel_on is set, or else no traces.",
            example="http://127.0.0.1:4318/v1/traces",
        ),
    )
    trust_domain: str = field(
        default="airbridge.local",
        metadata=_about(
            "The SPIFFE trust domain that workers' certificates name them in.", example="example.com"
        ),
    )
    gateway_host: str = field(
        default="127.0.0.1",
        metadata=_about("The address that the gateway's two listeners bind to.", example="10.0.0.5"),
    )
    gateway_port: int = field(
        default=8443,
        metadata=_about("The gateway's port for workers: mutual TLS. 0 picks a free one.", minimum=0),
    )
    operator_port: int = field(
        default=8444,
        metadata=_about("The gateway's port for operators and CI: TLS and an access token.", minimum=0),
    )
    gateway_names: str = field(
        default="localhost,127.0.0.1",
        metadata=_about(
            "DNS names and IP addresses that the gateway is reached by, for its certificate; separated by commas.",
            example="gateway.example.com",
        ),
    )
    gateway_threads: int = field(
        default=8,
        metadata=_about(
            "Requests that one gateway process works on at once, each with a database connection "
            "(heartbeats have three more).",
            minimum=1,
        ),
    )
    gateway_max_connections: int = field(
        default=16_384,
        metadata=_about(
            "Connections to one of the gateway's listeners at once. At a limit the oldest connection gives way "
            "that has shown no certificate.",
            minimum=1,
        ),
    )
    gateway_max_connections_per_address: int = field(
        default=1_024,
        metadata=_about(
            "Connections of one IP address that have shown no certificate (yet). At least as many as workers may come back "
            "at once from behind one address.",
            minimum=1,
        ),
    )
    gateway_max_connections_per_worker: int = field(
        default=64,
        metadata=_about("Connections of one worker.", minimum=1),
    )
    gateway_requests_per_second: float = field(
        default=2_000.0,
        metadata=_about(
            "Requests a second that the gateway answers in all, heartbeats not counted, with bursts of five seconds' "
            "worth; what is above is answered 429. 0: no limit.",
            minimum=0.0,
        ),
    )
    gateway_requests_per_second_per_worker: float = field(
        default=100.0,
        metadata=_about("The same for one worker, heartbeats counted. 0: no limit.", minimum=0.0),
    )
    gateway_requests_per_second_per_address: float = field(
        default=50.0,
        metadata=_about(
            "The same for one IP address, of requests without a client certificate: enrolments, operators, strangers. "
            "0: no limit.",
            minimum=0.0,
        ),
    )
    certificate_lifetime: float = field(
        default=3600.0,
        metadata=_about(
            "How long a worker's certificate and access token are good for. Renewed at half of it.",
            minimum=10.0,
        ),
    )
    policy_file: Path | None = field(
        default=None,
        metadata=_about(
            "The policy (TOML): which tasks may read, write, trigger and change what beyond their own. "
            "Unset: nothing. Followed while the gateway runs.",
            example="/etc/airbridge/policy.toml",
        ),
    )
    audit_seal_interval: float = field(
        default=1.0,
        metadata=_about(
            "How often new rows of the audit trail are chained. Until then the database alone protects them.",
            minimum=0.05,
        ),
    )
    compatibility_file: Path | None = field(
        default=None,
        metadata=_about(
            "The compatibility matrix (TOML). Unset: workers must run the control plane's own version of AirBridge.",
            example="/etc/airbridge/compatibility.toml",
        ),
    )
    worker_images: tuple[str, ...] | None = field(
        default=None,
        metadata=_about(
            "Digests of the worker image that may be enrolled and given work, separated by commas: the release's, and "
            "during a rolling upgrade the one before. Unset: any, whatever its versions allow.",
            example="sha256:<64 hexadecimal digits>",
        ),
    )

    @classmethod
    def read(cls, get: Getter) -> Self:
        """Read every option. Raises `ConfigurationError` naming the setting, its value and what would be right."""
        hints = get_type_hints(cls)
        values = {each.name: _read_one(each, hints[each.name], get(each.name)) for each in fields(cls)}
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        if self.lease_seconds <= self.heartbeat_interval:
            raise _wrong(
                "lease_seconds",
                str(self.lease_seconds),
                f"more than heartbeat_interval ({self.heartbeat_interval})",
            )
        if self.stop_after is not None and self.stop_after > self.lost_after:
            raise _wrong("stop_after", str(self.stop_after), f"at most lost_after ({self.lost_after})")


def _read_one(option: Field[Any], kind: Any, text: str | None) -> Any:
    if text is None or not text.strip():
        if option.default is MISSING:
            raise _missing(option)
        return option.default
    value = _PARSERS[kind](option.name, text.strip())
    minimum = option.metadata["minimum"]
    if minimum is not None and value < minimum:
        raise _wrong(option.name, text, f"at least {minimum:g}")
    return value


def _path(name: str, text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise _wrong(name, text, "an absolute path")
    return path


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise _wrong(name, text, "a number") from error
    if not math.isfinite(value):
        raise _wrong(name, text, "a finite number")
    return value


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise _wrong(name, text, "a whole number") from error


def _boolean(name: str, text: str) -> bool:
    if text.lower() in {"true", "t", "1", "yes"}:
        return True
    if text.lower() in {"false", "f", "0", "no"}:
        return False
    raise _wrong(name, text, "True or False")


def _digests(name: str, text: str) -> tuple[str, ...]:
    digests = tuple(part.strip() for part in text.split(",") if part.strip())
    if not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise _wrong(name, text, "image digests, sha256:<64 hexadecimal digits>, separated by commas")
    return digests


_PARSERS: dict[Any, Callable[[str, str], Any]] = {
    Path: _path,
    Path | None: _path,
    str: lambda _, text: text,
    str | None: lambda _, text: text,
    float: _number,
    float | None: _number,
    int: _integer,
    bool: _boolean,
    tuple[str, ...] | None: _digests,
}


def _wrong(name: str, text: str, right: str) -> ConfigurationError:
    return ConfigurationError(f"[{SECTION}] {name} is {text!r}; it must be {right}")


def _missing(option: Field[Any]) -> ConfigurationError:
    return ConfigurationError(
        f"[{SECTION}] {option.name} is not set; it must be given, for example {option.metadata['example']}. "
        f"{option.metadata['description']}"
    )


def load() -> Settings:
    """Read the settings of this process from Airflow's configuration."""
    from airbridge.executor._airflow import airflow_option

    return Settings.read(lambda name: airflow_option(SECTION, name))
