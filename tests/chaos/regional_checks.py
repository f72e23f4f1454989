"""Checks of what stays in the region: triggers that run there, and XComs that are stored there.

A trigger's event is applied once, at the time at which its code fired, under the grant of the worker that reported it; a trigger that
was lost is run again, and one that was cancelled has no event. A reference to an XCom is only there with its object.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.history import Applied, Fire, History, Item, TaskKey
from tests.chaos.schedule import STORED, STORED_MEMBERS
from tests.chaos.violations import Kind, Violation, name_of, value_of

from airbridge.core.residency import xcoms

TRUE_TIME_SECONDS = 1.5
"""Between the moment at which a trigger's code fired and that at which its worker had the event; two cores run everything else, too."""


def members(run_id: str, task_id: str) -> list[str]:
    """Return the expected value of a stored XCom. Written a second time on purpose: the DAG file's own is under test."""
    return [value_of(run_id, task_id, str(number)) for number in range(STORED_MEMBERS)]


def triggers(history: History) -> Iterator[Violation]:
    """Yield the violations of promises on triggers."""
    applied: dict[str, list[Applied]] = defaultdict(list)
    for event in history.applied:
        applied[event.item].append(event)
    fires: dict[str, list[Fire]] = defaultdict(list)
    for fire in history.fires:
        fires[fire.ti_id].append(fire)
    for item in history.triggers:
        where = f"{name_of(item.key)} (trigger {item.id}, {item.worker})"
        yield from _settled(history, item, where)
        yield from _events(history, item, applied[item.id], where)
        if item.key[2].startswith("w"):
            yield from _true_times(applied[item.id], fires[item.ti_id], where)


def _settled(history: History, item: Item, where: str) -> Iterator[Violation]:
    if item.state != "settled":
        yield Violation(Kind.STUCK, where, f"its work item is {item.state}")
        return
    settled = history.settlements.get(item.id, 0)
    if settled != 1:
        kind = Kind.DOUBLED if settled else Kind.DISAGREE
        yield Violation(kind, where, f"{settled} events say that it was settled")
    if item.outcome not in {"success", "cancelled"} and item.id not in history.cancelled:
        yield Violation(Kind.LOST, where, f"settled as {item.outcome}: {item.detail}")
    elif item.outcome == "cancelled" and item.key not in history.cleared:
        yield Violation(Kind.LOST, where, f"cancelled, and its task was not cleared: {item.detail}")


def _events(history: History, item: Item, applied: list[Applied], where: str) -> Iterator[Violation]:
    if len(applied) > 1:
        yield Violation(Kind.DOUBLED, where, f"{len(applied)} events of it were applied")
    if item.outcome == "success" and not applied:
        yield Violation(Kind.INVENTED, where, "settled as fired, and no event was applied")
    for event in applied:
        if event.worker != item.worker:
            yield Violation(
                Kind.FENCE, where, f"an event of {event.worker} was applied, which lost it before"
            )
        if _forgotten(history, item, event):
            yield Violation(Kind.LOST, where, "its event was in a journal; a later one was applied")
        if event.at > history.cancelled.get(item.id, event.at):
            yield Violation(Kind.FENCE, where, "it was cancelled, and its event was applied after that")


def _forgotten(history: History, item: Item, event: Applied) -> bool:
    """Return whether a trigger ran again although a worker that was killed had journalled its event, and was not silent for too long."""
    fired = any(item.id in death.journalled and death.at < event.fired_at for death in history.deaths)
    return fired and item.id not in history.lost


def _true_times(applied: list[Applied], fires: list[Fire], where: str) -> Iterator[Violation]:
    for event in applied:
        offs = [abs(event.fired_at - fire.at) for fire in fires]
        if not offs:
            yield Violation(Kind.INVENTED, where, "an event was applied, and its code did not fire")
        elif min(offs) > TRUE_TIME_SECONDS:
            what = f"its event has a time that is {min(offs):.1f} s from that at which its code fired"
            yield Violation(Kind.DISAGREE, where, what)


def stored(history: History) -> Iterator[Violation]:
    """Yield the violations of promises on stored XComs."""
    for (key, _), value in history.xcoms.items():
        if xcoms.is_reference(value):
            data = value["__data__"]
            if history.objects.get(data["object"]) != data["sha256"]:
                found = "another content" if data["object"] in history.objects else "no object"
                what = f"a reference to {data['object'][-64:][:12]}..., which has {found}"
                yield Violation(Kind.REFERENCE, name_of(key), what)


def is_stored(value: object, key: TaskKey) -> bool:
    """Return whether an XCom is a reference to what the task returned."""
    if not xcoms.is_reference(value):
        return False
    text = json.dumps(members(key[1], key[2]), separators=(",", ":")).encode()
    digest: str = value["__data__"]["sha256"]  # type: ignore[index]  # is_reference: a dict
    return digest == hashlib.sha256(text).hexdigest()


def excused(history: History, item: Item) -> bool:
    """Return whether an attempt failed because its region's bucket could not be reached: it is tried again."""
    faults = history.schedule.faults
    return (
        item.key[0] == STORED and item.detail == "up_for_retry" and any("s3" in one.links for one in faults)
    )
