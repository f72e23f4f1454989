"""Attacks by DAG code: one team's bundle that defines another team's DAG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.security.attacks.registry import Result, attack


@attack(row=18)
def dag_of_another_bundle(world: Any, directory: Path) -> Result:
    """A bundle defines a DAG id that another bundle had first; its code would run under the other team's rules."""
    from airbridge.executor.ledger.models import WorkItemRow

    [item] = world.items()
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item)
        # As the executor places a task of the DAG version that came last.
        row.workload = {**row.workload, "bundle": {**row.workload["bundle"], "name": "team-b"}}
        session.commit()
    answer = world.worker().claim(world.envelope(item))
    told = answer.refusals[0].detail if answer.refusals else ""
    return Result("the other bundle's code runs as the DAG" if answer.grants else "", told)
