"""The control plane's settings: section ``[airbridge]`` of Airflow's configuration, read once into one frozen object.

Each field carries its description, so that the section registered with Airflow
(`airbridge.executor.provider`) and the object that is read cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

from airbridge.core.hints import LONGEST_SECONDS
from airbridge.executor.setting_values import (
    SECTION,
    Classpath,
    FourEyes,
    Machine,
    Pattern,
    Sandbox,
    read,
    wrong,
)

# Gives the text of an option, or None where it is not set.
Getter = Callable[[str], str | None]


def _about(
    description: str,
    *,
    example: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> dict[str, Any]:
    return {"description": description, "example": example, "minimum": minimum, "maximum": maximum}


def _time(
    description: str, *, minimum: float, example: str | None = None, unit_seconds: float = 1.0
) -> dict[str, Any]:
    return _about(description, example=example, minimum=minimum, maximum=LONGEST_SECONDS / unit_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the control plane. Durations are in seconds unless the name gives another unit."""

    regions_file: Path = field(
        metadata=_about(
            "Region catalogue (TOML): regions, their pools, queues and buckets, and the location of data.",
            example="/etc/airbridge/regions.toml",
        )
    )
    secrets_dir: Path = field(
        metadata=_about(
            "Directory of the control plane's keys, created by 'airbridge init'. Readable by its owner only.",
            example="/etc/airbridge/secrets",
        )
    )
    default_queue: str | None = field(
        default=None,
        metadata=_about(
            "Queue of tasks that name neither a queue nor a hint: 'region' or 'pool@region'. "
            "Unset: the default pool of the catalogue's home region.",
            example="us-east-1",
        ),
    )
    near_assets: bool = field(
        default=True,
        metadata=_about(
            "Whether a task that names neither a queue nor data runs near the assets that it declares as inlets and outlets.",
        ),
    )
    edge_triggers: bool = field(
        default=True,
        metadata=_about(
            "Whether the trigger of a deferred task runs on a worker of the task's pool, if all live workers of the pool can run triggers. "
            "False leaves all triggers to Airflow's triggerer. Regions, pools and tasks can choose as well.",
        ),
    )
    fallback_after: float = field(
        default=60.0,
        metadata=_time(
            "Time that a task with a fallback waits unclaimed before it moves to the next region.",
            minimum=1.0,
        ),
    )
    lost_after: float = field(
        default=900.0,
        metadata=_time(
            "Time without a heartbeat of its worker after which a running task is fenced off and failed. "
            "A cut is survived if it is shorter by a heartbeat and the time to reconnect.",
            minimum=1.0,
        ),
    )
    stop_after: float | None = field(
        default=None,
        metadata=_time(
            "Duration of a network cut after which the worker stops the task itself. Unset: the task continues.",
            example="300",
            minimum=1.0,
        ),
    )
    replace: bool = field(
        default=True,
        metadata=_about(
            "Whether a lost attempt may be retried. False fails the task permanently, for work that must never run twice.",
        ),
    )
    warm: bool = field(
        default=True,
        metadata=_about(
            "Whether tasks may be forked from a process that has parsed their DAG file already.",
        ),
    )
    heartbeat_interval: float = field(
        default=10.0,
        metadata=_time("Interval of a worker's heartbeat; an overloaded gateway lengthens it.", minimum=0.1),
    )
    lease_seconds: float = field(
        default=60.0,
        metadata=_time(
            "Lifetime of a grant without a heartbeat. Set it to several times heartbeat_interval.",
            minimum=1.0,
        ),
    )
    worker_alive_seconds: float = field(
        default=90.0,
        metadata=_time(
            "Time without a heartbeat after which a worker is not considered for new work.",
            minimum=1.0,
        ),
    )
    message_ttl: float = field(
        default=900.0,
        metadata=_time(
            "Lifetime of a work item's message. An item whose message expires unclaimed is sent again.",
            minimum=5.0,
        ),
    )
    outbox_floor: int = field(
        default=10,
        metadata=_about(
            "Work items that are sent to a pool without live workers, so that an autoscaling group sees its backlog.",
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
        metadata=_time(
            "Polling interval of the outbox for work without a wake-up (rows of another scheduler, expired messages).",
            minimum=0.05,
        ),
    )
    outbox_blocked_interval: float = field(
        default=0.2,
        metadata=_time(
            "Polling interval of the outbox while work waits only for capacity on a queue.", minimum=0.01
        ),
    )
    outbox_backoff_base: float = field(
        default=0.5,
        metadata=_time(
            "First delay after a failed send; it doubles with each failure, with full jitter.",
            minimum=0.01,
        ),
    )
    outbox_backoff_limit: float = field(
        default=60.0, metadata=_time("Longest delay between attempts to send to a queue.", minimum=0.1)
    )
    scaling_namespace: str | None = field(
        default=None,
        metadata=_about(
            "CloudWatch namespace, in each region, of the pools' backlog metrics for autoscaling. "
            "Unset: nothing is published.",
            example="AirBridge",
        ),
    )
    scaling_interval: float = field(
        default=10.0,
        metadata=_time(
            "Interval at which backlogs are published. New work is published immediately in addition.",
            minimum=1.0,
        ),
    )
    metrics_namespace: str | None = field(
        default=None,
        metadata=_about(
            "CloudWatch namespace of a gateway's metrics. Its log then contains them every minute, as lines in "
            "CloudWatch's embedded metric format. Unset: no such lines.",
            example="AirBridge",
        ),
    )
    reconcile_interval: float = field(
        default=5.0,
        metadata=_time(
            "Interval at which lost attempts are fenced and the heartbeats of leased tasks are refreshed.",
            minimum=0.05,
        ),
    )
    retention_days: float = field(
        default=30.0,
        metadata=_time(
            "Days that settled work items, their records and events are kept.",
            minimum=0.01,
            unit_seconds=86_400,
        ),
    )
    worker_retention_hours: float = field(
        default=24.0,
        metadata=_time(
            "Hours after which a silent worker without work and without a usable certificate is forgotten: it is listed, "
            "reported as silent and keeps its orders for so long. Workers under maintenance are kept.",
            minimum=0.1,
            unit_seconds=3600,
        ),
    )
    traces_endpoint: str | None = field(
        default=None,
        metadata=_about(
            "OTLP/HTTP URL of the OpenTelemetry collector that receives spans. Unset: Airflow's own collector "
            "where [traces] otel_on is set, or else no traces.",
            example="http://127.0.0.1:4318/v1/traces",
        ),
    )
    trust_domain: str = field(
        default="airbridge.local",
        metadata=_about("SPIFFE trust domain of the workers' certificates.", example="example.com"),
    )
    gateway_host: str = field(
        default="127.0.0.1",
        metadata=_about("Address to which the gateway's two listeners bind.", example="10.0.0.5"),
    )
    gateway_port: int = field(
        default=8443,
        metadata=_about(
            "Port of the gateway for workers (mutual TLS). 0 selects a free port.", minimum=0, maximum=65_535
        ),
    )
    operator_port: int = field(
        default=8444,
        metadata=_about(
            "Port of the gateway for operators and CI (TLS and an access token).", minimum=0, maximum=65_535
        ),
    )
    gateway_names: str = field(
        default="localhost,127.0.0.1",
        metadata=_about(
            "DNS names and IP addresses of the gateway, for its certificate; separated by commas.",
            example="gateway.example.com",
        ),
    )
    gateway_threads: int = field(
        default=8,
        metadata=_about(
            "Exchanges, releases and renewals that one gateway process handles concurrently, each with a database connection; "
            "and half as many claims. Everything else (heartbeats, enrolments, operators, audit) has up to fifteen more.",
            minimum=1,
        ),
    )
    gateway_max_connections: int = field(
        default=16_384,
        metadata=_about(
            "Maximum number of connections to one of the gateway's listeners. At the limit the oldest connection "
            "without a client certificate is closed.",
            minimum=1,
        ),
    )
    gateway_max_connections_per_address: int = field(
        default=1_024,
        metadata=_about(
            "Maximum number of connections of one IP address without a client certificate (yet). At least the number of workers "
            "that may reconnect at once from behind one address.",
            minimum=1,
        ),
    )
    gateway_max_connections_per_worker: int = field(
        default=64,
        metadata=_about("Maximum number of connections of one worker.", minimum=1),
    )
    gateway_requests_per_second: float = field(
        default=2_000.0,
        metadata=_about(
            "Requests per second to one of the gateway's listeners, without heartbeats, with bursts of five seconds' "
            "worth. Further requests are answered 429. 0: no limit.",
            minimum=0.0,
        ),
    )
    gateway_requests_per_second_per_worker: float = field(
        default=100.0,
        metadata=_about("Requests per second of one worker, including heartbeats. 0: no limit.", minimum=0.0),
    )
    gateway_requests_per_second_per_address: float = field(
        default=50.0,
        metadata=_about(
            "Requests per second of one IP address without a client certificate (enrolments, operators, others) to one "
            "of the listeners. 0: no limit.",
            minimum=0.0,
        ),
    )
    certificate_lifetime: float = field(
        default=3600.0,
        metadata=_time(
            "Lifetime of a worker's certificate and access token. Both are renewed at half of it.",
            minimum=10.0,
        ),
    )
    identity_grace: float = field(
        default=60.0,
        metadata=_time(
            "How long after a worker's certificate was replaced its use is no evidence of a copy: requests may be under way.",
            minimum=1.0,
        ),
    )
    identity_stop_two_addresses: bool = field(
        default=False,
        metadata=_about(
            "Whether a worker whose certificate is used from two addresses in turn is stopped, instead of reported. "
            "Leave it off where workers reach the gateway through several NAT or load balancer addresses.",
        ),
    )
    policy_file: Path | None = field(
        default=None,
        metadata=_about(
            "Policy (TOML): what tasks may read, write, trigger and change beyond their own. "
            "Unset: nothing. Reloaded while the gateway runs.",
            example="/etc/airbridge/policy.toml",
        ),
    )
    four_eyes: tuple[FourEyes, ...] | None = field(
        default=None,
        metadata=_about(
            "Operator actions that a second operator of another owner must approve: 'revocation', 'policy', 'tokens', separated by "
            "commas. With 'policy' the last approved policy is in force, and policy_file is not read. Unset: none.",
            example="policy,tokens",
        ),
    )
    four_eyes_expiry: float = field(
        default=86_400.0,
        metadata=_time(
            "Time in which a proposal must be approved, and an approved token collected.", minimum=1.0
        ),
    )
    audit_anchors: str = field(
        default="",
        metadata=_about(
            "Places outside of the database where the audit trail's last link is written, comma-separated: file:///path, "
            "s3://bucket/prefix?region=NAME (with Object Lock), syslog://host:port.",
            example="s3://audit-anchors/airbridge?region=us-east-1",
        ),
    )
    audit_anchor_interval: float = field(
        default=300.0,
        metadata=_time("How often it is written there, and compared with what is there.", minimum=1.0),
    )
    audit_seal_interval: float = field(
        default=1.0,
        metadata=_time(
            "Interval at which new rows of the audit trail are sealed. Until then only the database protects them.",
            minimum=0.05,
        ),
    )
    sandbox: Sandbox = field(
        default=Sandbox.AUTO,
        metadata=_about(
            "Whether DAG code must be sandboxed where the control plane parses it: 'require' refuses to on a host without "
            "Landlock or seccomp, 'auto' goes on with what there is.",
            example="require",
        ),
    )
    parse_environment: tuple[Pattern, ...] | None = field(
        default=None,
        metadata=_about(
            "Environment variables of the dag-processor and the gateway that DAG files may see while they are parsed, "
            "separated by commas. None may hold a secret.",
            example="DEPLOYMENT,DATA_LAKE",
        ),
    )
    parse_variables: tuple[Pattern, ...] | None = field(
        default=None,
        metadata=_about(
            "Airflow variables that DAG files may read while they are parsed: names, or patterns such as 'public_*', "
            "separated by commas. Every DAG author can read them.",
            example="public_*",
        ),
    )
    parse_connections: tuple[Pattern, ...] | None = field(
        default=None,
        metadata=_about(
            "Connections that DAG files may read while they are parsed, as with parse_variables. Every DAG author can read "
            "them, passwords included.",
            example="public_catalogue",
        ),
    )
    task_options_withheld: tuple[Pattern, ...] | None = field(
        default=None,
        metadata=_about(
            "Options of Airflow's configuration that tasks on workers do not see though they would by the rule: patterns of "
            "section.option, separated by commas.",
            example="acme.*,smtp.smtp_user",
        ),
    )
    trigger_classes: tuple[Classpath, ...] | None = field(
        default=None,
        metadata=_about(
            "Trigger classes that deferred tasks may have the triggerer run beside those of the installed providers that "
            "load no code by name and touch no files; full paths, separated by commas. They run in the control plane.",
            example="acme.triggers.OrderTrigger",
        ),
    )
    packages: bool = field(
        default=True,
        metadata=_about(
            "Whether the packages that a bundle's requirements.txt or uv.lock names are installed for its DAGs. False ignores "
            "these files: tasks have the packages of the image.",
        ),
    )
    package_index: str = field(
        default="https://pypi.org/simple",
        metadata=_about(
            "URL of the package index (simple API) that bundles' packages come from; 'none' uses package_find_links alone. "
            "Credentials belong into package_netrc.",
            example="https://packages.example.com/simple",
        ),
    )
    package_find_links: str | None = field(
        default=None,
        metadata=_about(
            "Directory or URL of a page with wheels, besides the package index.",
            example="/srv/wheels",
        ),
    )
    package_netrc: Path | None = field(
        default=None,
        metadata=_about(
            "File with the package index's credentials, in the format of .netrc; readable by the dag-processor and the gateway.",
            example="/etc/airbridge/netrc",
        ),
    )
    package_sdists: bool = field(
        default=False,
        metadata=_about(
            "Whether packages without a wheel are built from source. A build runs the package's code, confined, with the "
            "network and the index's credentials.",
        ),
    )
    package_machines: tuple[Machine, ...] | None = field(
        default=None,
        metadata=_about(
            "Machines of the workers that environments are built for, separated by commas: x86_64, aarch64. Unset: that of "
            "the control plane.",
            example="x86_64,aarch64",
        ),
    )
    package_seconds: float = field(
        default=300.0,
        metadata=_time("Time that locking and building a bundle's environment may take.", minimum=1.0),
    )
    package_max_mb: float = field(
        default=768.0,
        metadata=_about(
            "Size (MiB, unpacked) that a bundle's environment may have; at most 1024.", minimum=1.0
        ),
    )
    oidc_file: Path | None = field(
        default=None,
        metadata=_about(
            "Sign-in of operators by OpenID Connect (TOML): issuer, audience, and the scopes of groups. Unset: access tokens "
            "are created with 'airbridge token' only.",
            example="/etc/airbridge/oidc.toml",
        ),
    )
    ui_oidc_file: Path | None = field(
        default=None,
        metadata=_about(
            "Sign-in to Airflow's UI by OpenID Connect (TOML): issuer, audience, and the roles of groups. Read by the auth "
            "manager airbridge.control_plane.sign_in.auth_manager.OidcAuthManager, which requires it.",
            example="/etc/airbridge/ui-oidc.toml",
        ),
    )
    join_issuers_file: Path | None = field(
        default=None,
        metadata=_about(
            "Issuers whose tokens admit workers (TOML; join methods oidc and kubernetes): keys, audience, and the regions and "
            "pools of their claims. Unset: none.",
            example="/etc/airbridge/join-issuers.toml",
        ),
    )
    compatibility_file: Path | None = field(
        default=None,
        metadata=_about(
            "Compatibility matrix (TOML). Unset: workers must run the control plane's own version of AirBridge.",
            example="/etc/airbridge/compatibility.toml",
        ),
    )
    worker_images: tuple[str, ...] | None = field(
        default=None,
        metadata=_about(
            "Digests of the worker images that may enrol and get work, separated by commas: the release's, and "
            "during a rolling upgrade its predecessor's. Unset: any image whose versions the matrix allows.",
            example="sha256:<64 hexadecimal digits>",
        ),
    )

    @classmethod
    def read(cls, get: Getter) -> Self:
        """Read every option. Raises `ConfigurationError` naming the setting, its value and what would be right."""
        hints = get_type_hints(cls)
        values = {each.name: read(each, hints[each.name], get(each.name)) for each in fields(cls)}
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        if self.lease_seconds <= self.heartbeat_interval:
            raise wrong(
                "lease_seconds",
                str(self.lease_seconds),
                f"more than heartbeat_interval ({self.heartbeat_interval})",
            )
        if self.stop_after is not None and self.stop_after > self.lost_after:
            raise wrong("stop_after", str(self.stop_after), f"at most lost_after ({self.lost_after})")


def load() -> Settings:
    """Read the settings of this process from Airflow's configuration."""
    from airbridge.executor._airflow import airflow_option

    return Settings.read(lambda name: airflow_option(SECTION, name))
