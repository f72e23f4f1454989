"""Every metric: the one definition that the processes register, docs/reference/metrics.md lists and the dashboards draw.

Names end in their unit, as Prometheus recommends: ``_seconds``, ``_bytes``, ``_ratio``; counters in ``_total``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """Metric type of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Process that exposes a metric."""

    GATEWAY = "gateway"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `unit` is for people; `name` carries it for machines."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    source: Source
    labels: tuple[str, ...] = ()


def _gateway(name: str, kind: Kind, unit: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, kind, unit, meaning, Source.GATEWAY, labels)


def _worker(name: str, kind: Kind, unit: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, kind, unit, meaning, Source.WORKER, labels)


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

# Value of a label for what has no name of its own: paths that are no endpoint, regions that are not in the catalogue.
OTHER: Final = "other"

REQUESTS: Final = _gateway(
    "airbridge_gateway_requests_total",
    _C,
    "requests",
    "Requests answered, by endpoint of the edge API and HTTP status",
    *("endpoint", "status"),
)
REQUEST_SECONDS: Final = _gateway(
    "airbridge_gateway_request_seconds",
    _H,
    "seconds",
    "From a request's first byte to its answer, by endpoint of the edge API",
    "endpoint",
)
HEARTBEAT_INTERVAL: Final = _gateway(
    "airbridge_gateway_heartbeat_interval_seconds",
    _G,
    "seconds",
    "Interval of heartbeats that workers are given: longer than heartbeat_interval while this gateway is overloaded",
)
CLAIMS: Final = _gateway(
    "airbridge_claims_total", _C, "work items", "Work items granted to workers", "region", "pool"
)
# Claims, also of messages that a worker refused itself; and reports.
OPERATIONS: Final = ("claim", "report")
REFUSALS: Final = _gateway(
    "airbridge_refusals_total",
    _C,
    "work items",
    "Claims (with the messages that workers refused themselves) and reports refused, by the reason in the protocol's words",
    *("region", "operation", "reason"),
)
REPORT_DELAY: Final = _gateway(
    "airbridge_report_delay_seconds",
    _H,
    "seconds",
    "From when a task's write was journalled at the edge, by its corrected clock, to when it was applied",
    "region",
)
EDGE_EVENTS: Final = _gateway(
    "airbridge_edge_events_total", _C, "events", "Events taken from workers", "region"
)
ITEMS: Final = _gateway(
    "airbridge_work_items",
    _G,
    "work items",
    "Open work items: placed (waiting to be sent), sent (on the queue), claimed (leased to a worker)",
    *("region", "pool", "state"),
)
QUEUE_AGE: Final = _gateway(
    "airbridge_queue_age_seconds",
    _G,
    "seconds",
    "Age of the oldest unclaimed work item that no limit and no quota holds back; 0 if there is none",
    *("region", "pool"),
)
BACKLOG_PER_SLOT: Final = _gateway(
    "airbridge_backlog_per_slot_ratio",
    _G,
    "work items a slot",
    "Unclaimed work items for each slot of the workers that take work; without slots, the unclaimed work items",
    *("region", "pool"),
)
UNSERVED: Final = _gateway(
    "airbridge_unserved_work_items",
    _G,
    "work items",
    "Unclaimed work items of a pool in which no worker takes new work",
    *("region", "pool"),
)
SLOTS: Final = _gateway(
    "airbridge_slots", _G, "slots", "Slots of the workers that take new work", "region", "pool"
)
SLOTS_USED: Final = _gateway("airbridge_slots_used", _G, "slots", "Of these, those in use", "region", "pool")
TEAM_SLOTS: Final = _gateway(
    "airbridge_team_slots",
    _G,
    "slots",
    "Slots of the work items of a team that are on the queue (sent) or held by a worker (claimed): its share of the pool",
    *("team", "region", "pool", "state"),
)
TEAM_WAITING: Final = _gateway(
    "airbridge_team_waiting_work_items",
    _G,
    "work items",
    "Work items of a team that wait for their turn at a pool",
    *("team", "region", "pool"),
)
MOVED: Final = _gateway(
    "airbridge_moved_bytes_total",
    _C,
    "bytes",
    "Bytes that tasks moved: XComs that they wrote or read (xcom), their logs (log), and code that their workers fetched (code)",
    *("region", "pool", "kind"),
)
LIMIT_RUNNING: Final = _gateway(
    "airbridge_limit_running",
    _G,
    "tasks",
    "Running tasks that count towards a limit of the catalogue",
    "limit",
)
LIMIT_MAX: Final = _gateway(
    "airbridge_limit_max_running", _G, "tasks", "Tasks that the limit lets run at one time", "limit"
)
LIMIT_STARTS: Final = _gateway(
    "airbridge_limit_starts",
    _G,
    "tasks",
    "Tasks that started within the last minute under a limit that has a rate",
    "limit",
)
LIMIT_WAITING: Final = _gateway(
    "airbridge_limit_waiting_work_items",
    _G,
    "work items",
    "Unclaimed work items that count towards the limit",
    "limit",
)
WORKERS: Final = _gateway(
    "airbridge_workers",
    _G,
    "workers",
    "Enrolled workers by what they may do: serving, draining, drain_only, no_queue, refused, stale, silent, stopped, revoked",
    *("region", "pool", "standing"),
)
VERSIONS: Final = _gateway(
    "airbridge_worker_versions",
    _G,
    "workers",
    "Workers by AirBridge version and the compatibility matrix's verdict: version skew",
    *("airbridge", "verdict"),
)
CERTIFICATE_LEFT: Final = _gateway(
    "airbridge_worker_certificate_left_seconds",
    _G,
    "seconds",
    "Until the certificate of a live worker of the pool ends, the soonest",
    *("region", "pool"),
)
CERTIFICATE_LEFT_RATIO: Final = _gateway(
    "airbridge_worker_certificate_left_ratio",
    _G,
    "0 to 1",
    "Part of its lifetime that the certificate of a live worker of the pool has left, the smallest; below 0 after its end",
    *("region", "pool"),
)
CA_LEFT: Final = _gateway(
    "airbridge_ca_left_seconds",
    _G,
    "seconds",
    "Until the certificate of the issuing CA (issuing) and of the root that signed it (root) ends; negative afterwards",
    "kind",
)
JOURNALS: Final = _gateway(
    "airbridge_worker_journal_records",
    _G,
    "records",
    "Journalled writes that workers have yet to report, by their last heartbeats",
    *("region", "pool"),
)
CLOCK_SKEW: Final = _gateway(
    "airbridge_worker_clock_skew_seconds",
    _G,
    "seconds",
    "How far the clock of a live worker of the pool is off, the farthest, without its sign",
    *("region", "pool"),
)

IDENTITY_ALARMS: Final = _gateway(
    "airbridge_identity_alarms",
    _G,
    "names",
    "Worker names in the last fifteen minutes that were stopped because a copy of their identity was used (forked), "
    "or that were used from two addresses",
    *("region", "kind"),
)
JOINS_REFUSED: Final = _gateway(
    "airbridge_joins_refused_total",
    _C,
    "enrolments",
    "Refused enrolments, by requested region; other for a region that is not in the catalogue",
    *("region", "reason"),
)
AUDIT_FAULTS: Final = _gateway(
    "airbridge_audit_faults_total",
    _C,
    "faults",
    "Times that the audit trail did not match its anchors (truncated, rewritten), or that a place of anchors was away",
    "fault",
)
# Actions that one operator may do alone with scope break_glass:use.
BREAK_GLASS_ACTIONS: Final = ("revocation.add", "token.revoke", "worker.revoke")
BREAK_GLASS: Final = _gateway(
    "airbridge_break_glass_total",
    _C,
    "actions",
    "Actions that one operator did alone where two are required, by scope break_glass:use",
    "action",
)

W_SLOTS: Final = _worker("airbridge_worker_slots", _G, "slots", "Slots of this worker")
W_SLOTS_USED: Final = _worker("airbridge_worker_slots_used", _G, "slots", "Slots that running tasks take")
W_LINK_UP: Final = _worker(
    "airbridge_worker_link_up_ratio", _G, "0 or 1", "1 if the last request to the gateway was answered"
)
W_LINK_SILENT: Final = _worker(
    "airbridge_worker_link_silent_seconds", _G, "seconds", "How long the gateway has owed an answer"
)
W_JOURNAL: Final = _worker(
    "airbridge_worker_journal_pending_records", _G, "records", "Journalled writes that are not answered yet"
)
W_JOURNAL_BYTES: Final = _worker(
    "airbridge_worker_journal_bytes", _G, "bytes", "Grants and records in the journal"
)
W_EVENTS: Final = _worker(
    "airbridge_worker_events_pending", _G, "events", "Events that the control plane has yet to take"
)
W_LOGS_BYTES: Final = _worker(
    "airbridge_worker_logs_pending_bytes", _G, "bytes", "Task logs that are not shipped in full yet"
)
W_STARTS: Final = _worker(
    "airbridge_worker_starts_total",
    _C,
    "tasks",
    "Task processes started: warm (from a process that had parsed the DAG file) or cold",
    "kind",
)
W_CACHE: Final = _worker(
    "airbridge_worker_bundle_lookups_total",
    _C,
    "lookups",
    "Lookups of DAG code in the local cache: hit, or miss (fetched from the region's bucket)",
    "result",
)
W_REPORT_DELAY: Final = _worker(
    "airbridge_worker_report_delay_seconds",
    _H,
    "seconds",
    "From when a task's write was journalled to when the gateway answered it, by this machine's clock",
)
W_TASK_CPU: Final = _worker(
    "airbridge_worker_task_cpu_seconds_total",
    _C,
    "seconds",
    "CPU time of tasks that have ended, with all that they started where cgroups hold their limits",
)
W_TASK_MEMORY: Final = _worker(
    "airbridge_worker_task_peak_memory_bytes", _H, "bytes", "Peak memory of tasks that have ended, as above"
)
W_LIMITS: Final = _worker(
    "airbridge_worker_limits_reached_total",
    _C,
    "tasks",
    "Tasks that ran into a limit of theirs: memory, processes or disk",
    "limit",
)
W_SKEW: Final = _worker(
    "airbridge_worker_skew_seconds", _G, "seconds", "How far this machine's clock is ahead of the database's"
)

# A copy of the globals, which the comprehension itself adds names to.
# Every metric, in the order of this page.
ALL: Final = tuple(value for value in dict(globals()).values() if isinstance(value, Metric))

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Up to a cut of an hour.
DELAY_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)

# From 64 MiB to 64 GiB.
MEMORY_BUCKETS: Final = tuple(float((64 << 20) << exponent) for exponent in range(11))


def problems(metric: Metric) -> list[str]:
    """Return the naming problems that promtool would report, and a few more."""
    import re

    found = []
    if not re.fullmatch(r"airbridge(_[a-z][a-z0-9]*)+", metric.name):
        found.append("must be airbridge_ and words of lower-case letters and digits")
    if (metric.kind is Kind.COUNTER) != metric.name.endswith("_total"):
        found.append("counters, and only they, end in _total")
    if metric.kind is Kind.HISTOGRAM and not metric.name.endswith(("_seconds", "_bytes")):
        found.append("a histogram ends in its base unit")
    base = metric.name.removesuffix("_total")
    if metric.unit == "seconds" and not base.endswith("_seconds"):
        found.append("a name in seconds ends in _seconds")
    if metric.unit == "bytes" and not base.endswith("_bytes"):
        found.append("a name in bytes ends in _bytes")
    if re.search(r"_(ms|milliseconds|minutes|hours|kb|mb|percent|count|sum|bucket)(_|$)", metric.name):
        found.append("only base units, and no reserved suffix")
    if not metric.meaning or metric.meaning.endswith("."):
        found.append("needs a meaning, without a full stop")
    if any(
        not re.fullmatch(r"[a-z][a-z_]*", label) or label in {"le", "quantile", "job", "instance"}
        for label in metric.labels
    ):
        found.append("a label is a word, and none of Prometheus' own")
    return found
