"""The modules under mutation testing, and the tests that are most likely to notice a fault in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Target:
    """A module under mutation testing."""

    name: str
    path: str
    """Relative to the repository's root."""
    focus: tuple[str, ...]
    """Test files that are to notice its faults. They are run first; others that reach a line follow, the fastest first."""


def _ledger(name: str, *focus: str) -> Target:
    path = name.replace(".", "/")
    return Target(f"ledger.{name}", f"executor/src/airbridge/executor/ledger/{path}.py", focus)


_LEDGER: Final = "tests/integration/executor/test_ledger.py"

TARGETS: Final = (
    _ledger(
        "items",
        "tests/integration/executor/test_item_queries.py",
        "tests/integration/executor/test_adoption.py",
        _LEDGER,
        "tests/integration/executor/test_outbox.py",
    ),
    _ledger("leases", "tests/integration/executor/test_lease_times.py", _LEDGER),
    _ledger(
        "identity.revocations",
        "tests/integration/executor/test_revocation_list.py",
        _LEDGER,
        "tests/integration/gateway/test_lost_grants.py",
    ),
    _ledger(
        "records",
        "tests/integration/executor/test_revocation_list.py",
        _LEDGER,
        "tests/integration/gateway/test_replay.py",
    ),
    _ledger(
        "backlogs",
        "tests/unit/executor/test_backlog.py",
        "tests/integration/executor/test_item_queries.py",
        _LEDGER,
    ),
    _ledger("audit", "tests/integration/executor/test_audit.py"),
    _ledger("chain", "tests/unit/executor/test_chain.py", "tests/unit/executor/test_chain_format.py"),
    Target(
        "fencing",
        "control_plane/src/airbridge/control_plane/gateway/work/fencing.py",
        (
            "tests/unit/control_plane/test_fencing.py",
            "tests/integration/gateway/test_work.py",
        ),
    ),
    Target(
        "claims",
        "control_plane/src/airbridge/control_plane/gateway/work/claims.py",
        (
            "tests/integration/gateway/test_claims.py",
            "tests/integration/gateway/test_replay.py",
            "tests/integration/gateway/test_work.py",
            "tests/integration/gateway/test_failures.py",
        ),
    ),
    Target(
        "exchanges",
        "control_plane/src/airbridge/control_plane/gateway/work/exchanges.py",
        (
            "tests/integration/gateway/test_exchanges.py",
            "tests/integration/gateway/test_replay.py",
            "tests/integration/gateway/test_work.py",
            "tests/integration/gateway/test_policy.py",
        ),
    ),
    Target(
        "release",
        "control_plane/src/airbridge/control_plane/gateway/work/release.py",
        ("tests/integration/gateway/test_releases.py", "tests/integration/gateway/test_lost_grants.py"),
    ),
    Target(
        "held_leases",
        "control_plane/src/airbridge/control_plane/gateway/work/held_leases.py",
        ("tests/integration/gateway/test_held_leases.py", "tests/integration/gateway/test_heartbeats.py"),
    ),
    Target(
        "decisions",
        "control_plane/src/airbridge/control_plane/policy/decisions.py",
        ("tests/unit/control_plane/test_decisions.py", "tests/unit/control_plane/test_rules.py"),
    ),
    Target(
        "rules",
        "control_plane/src/airbridge/control_plane/policy/rules.py",
        ("tests/unit/control_plane/test_rules.py", "tests/unit/control_plane/test_rule_considerations.py"),
    ),
    Target(
        "reload",
        "control_plane/src/airbridge/control_plane/policy/reload.py",
        ("tests/integration/policy/test_reload.py",),
    ),
    Target(
        "placement",
        "executor/src/airbridge/executor/placement/placement.py",
        ("tests/unit/executor/test_placement.py", "tests/unit/executor/test_placement_load.py"),
    ),
    Target(
        "nearest",
        "executor/src/airbridge/executor/placement/nearest.py",
        (
            "tests/unit/executor/test_nearest.py",
            "tests/unit/executor/test_placement_prices.py",
            "tests/unit/executor/test_placement_load.py",
        ),
    ),
    Target(
        "outbox",
        "executor/src/airbridge/executor/dispatch/outbox.py",
        (
            "tests/unit/executor/test_outbox_capacity.py",
            "tests/integration/executor/test_outbox.py",
            "tests/integration/executor/test_lost_messages.py",
        ),
    ),
    Target(
        "background_loop",
        "executor/src/airbridge/executor/background_loop.py",
        ("tests/unit/executor/test_background_loop.py",),
    ),
    Target(
        "reconciler",
        "executor/src/airbridge/executor/scheduling/reconciler.py",
        ("tests/integration/executor/test_reconciler.py",),
    ),
    Target(
        "waiting",
        "control_plane/src/airbridge/control_plane/read_model/diagnosis/waiting.py",
        ("tests/unit/control_plane/test_certificate_notes.py", "tests/integration/read_model/test_causes.py"),
    ),
    Target(
        "journal",
        "edge_worker/src/airbridge/edge_worker/journal/journal.py",
        ("tests/unit/edge_worker/test_journal.py", "tests/unit/edge_worker/test_journal_bounds.py"),
    ),
    Target(
        "journal.file",
        "edge_worker/src/airbridge/edge_worker/journal/file.py",
        ("tests/unit/edge_worker/test_journal_file.py", "tests/unit/edge_worker/test_journal_format.py"),
    ),
    Target(
        "journal.rows",
        "edge_worker/src/airbridge/edge_worker/journal/rows.py",
        (
            "tests/unit/edge_worker/test_journal_file.py",
            "tests/unit/edge_worker/test_journal_format.py",
            "tests/unit/edge_worker/test_journal.py",
        ),
    ),
    Target(
        "recovery",
        "edge_worker/src/airbridge/edge_worker/work/recovery.py",
        ("tests/unit/edge_worker/test_recovery.py", "tests/unit/edge_worker/test_recovered_records.py"),
    ),
    Target(
        "attempts",
        "edge_worker/src/airbridge/edge_worker/work/attempts.py",
        ("tests/unit/edge_worker/test_attempts.py", "tests/unit/edge_worker/test_attempt_records.py"),
    ),
)

SUITES: Final = (
    "tests/unit/executor",
    "tests/unit/control_plane",
    "tests/unit/edge_worker",
    "tests/contract",
    "tests/integration/executor",
    "tests/integration/gateway",
    "tests/integration/policy",
    "tests/integration/read_model",
    "tests/integration/partition",
    "tests/integration/edge_worker",
)
"""Tests that may notice a fault in a wide run. Coverage decides which of them do run for a mutant."""


def focus_of(targets: Sequence[Target]) -> tuple[str, ...]:
    """Return the test files of these targets, each once."""
    return tuple(dict.fromkeys(file for target in targets for file in target.focus))


def chosen(names: str) -> tuple[Target, ...]:
    """Return the targets of a comma-separated list; all of them if it is empty. Raises `ValueError`."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {target.name: target for target in TARGETS}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no module {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name] for name in wanted) or TARGETS
