"""Intake: turns what the scheduler hands over into new work items, or into the reason why it cannot be placed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import structlog

from airbridge.core.exceptions import PlacementError
from airbridge.core.regions import DEFAULT_TEAM
from airbridge.executor.ledger.items import NewItem
from airbridge.executor.placement.faults import of_database, unexpected
from airbridge.executor.placement.nearest import Load
from airbridge.executor.placement.placement import Decision, Placement

log = structlog.get_logger(__name__)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Refused:
    """A task instance that cannot be placed. `item` stands in the ledger under the default place."""

    item: NewItem
    reason: str


class Workloads:
    """Reads workloads against one placement. `team_of` returns the team that a bundle belongs to."""

    def __init__(
        self, placement: Placement, team_of: Callable[[str], str] = lambda _bundle: DEFAULT_TEAM
    ) -> None:
        self._placement = placement
        self._team_of = team_of

    def read(
        self,
        workloads: Sequence[Any],
        load: Load,
        bundles: Mapping[str, str | None],
        assets: Callable[[str, str], Sequence[str]] = lambda _dag, _task: (),
    ) -> tuple[list[NewItem], list[Refused]]:
        """Return the items to place and those refused: no task may stop the scheduler, whatever its author has written.

        `bundles` gives the current version of a bundle, `assets` the URIs that a task of a DAG declares as inlets and outlets.
        """
        items: list[NewItem] = []
        refused: list[Refused] = []
        for workload in workloads:
            try:
                items.append(self._read_one(workload, load, bundles, assets))
            except PlacementError as error:
                refused.append(self.refusal(workload, str(error)))
            except Exception as error:
                if of_database(error):
                    raise
                log.exception("workload.unreadable", ti_id=str(workload.ti.id))
                refused.append(self.refusal(workload, unexpected(error)))
        return items, refused

    def _read_one(
        self,
        workload: Any,
        load: Load,
        bundles: Mapping[str, str | None],
        assets: Callable[[str, str], Sequence[str]],
    ) -> NewItem:
        ti = workload.ti
        decision = self._placement.decide(
            ti.queue,
            ti.executor_config,
            load,
            max(1, ti.pool_slots),
            assets=lambda: assets(ti.dag_id, ti.task_id),
        )
        version = _version(workload.bundle_info, bundles)
        return self._new_item(workload, decision, version)

    def refusal(self, workload: Any, reason: str) -> Refused:
        """Return a workload as refused, for this reason."""
        decision = self._placement.decide(None, None, {})
        return Refused(self._new_item(workload, decision, workload.bundle_info.version), reason)

    def _new_item(self, workload: Any, decision: Decision, version: str | None) -> NewItem:
        return _new_item(workload, decision, version, self._team_of(workload.bundle_info.name))


def _version(bundle: Any, current: Mapping[str, str | None]) -> str:
    """Return the digest that the run was scheduled with, or else the bundle's current one."""
    version = bundle.version or current.get(bundle.name)
    if version is None or not _DIGEST.fullmatch(version):
        found = "has no version" if version is None else f"is at version {version!r}"
        raise PlacementError(
            f"DAG bundle {bundle.name!r} {found}; it must be an AirBridge bundle, whose version is a sha256 digest. "
            "Configure it in [dag_processor] dag_bundle_config_list with classpath "
            "'airbridge.executor.bundles.bundle.AirBridgeBundle', and let the dag-processor publish it"
        )
    return version


def _new_item(workload: Any, decision: Decision, version: str | None, team: str) -> NewItem:
    ti = workload.ti
    item_id = str(uuid4())
    return NewItem(
        ti_id=str(ti.id),
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=ti.map_index,
        try_number=ti.try_number,
        queue=ti.queue,
        region=decision.place.region,
        pool=decision.place.pool,
        slots=max(decision.slots, ti.pool_slots),
        priority=ti.priority_weight,
        workload={
            "ti": ti.model_dump(mode="json"),
            "dag_rel_path": str(workload.dag_rel_path),
            "bundle": {"name": workload.bundle_info.name, "version": version},
            "log_path": workload.log_path,
            **_asked(decision),
        },
        placement={
            "fallback": [{"region": place.region, "pool": place.pool} for place in decision.fallback],
            "fallback_after": decision.fallback_after,
            "why": decision.why,
            "tried": [],
        },
        disconnect=decision.disconnect.model_dump(mode="json"),
        warm=decision.warm,
        team=team,
        limits=" ".join(decision.limits) or None,
        trace=_trace(ti, item_id),
        id=item_id,
    )


def _asked(decision: Decision) -> dict[str, Any]:
    asked = decision.resources.model_dump(mode="json", exclude_none=True)
    return {
        **({"resources": asked} if asked else {}),
        **({"trigger": decision.trigger} if decision.trigger else {}),
    }


def _trace(ti: Any, item_id: str) -> dict[str, str]:
    """Return the task's W3C trace context: that of Airflow's own span, or a trace of its own for the task of the run.

    In a trace of its own the context's span is the one that all spans of the work item hang on.
    """
    carried = ti.context_carrier or ti.parent_context_carrier or {}
    if "traceparent" in carried:
        return {name: str(value) for name, value in carried.items()}
    names = f"{ti.dag_id}\n{ti.run_id}\n{ti.task_id}\n{ti.map_index}"
    trace = hashlib.sha256(names.encode()).hexdigest()[:32]
    return {"traceparent": f"00-{trace}-{root_span_id(item_id)}-01"}


def root_span_id(item_id: str) -> str:
    """Return the id of the span that all spans of a work item hang on, in hexadecimal."""
    return hashlib.sha256(item_id.encode()).hexdigest()[:16]
