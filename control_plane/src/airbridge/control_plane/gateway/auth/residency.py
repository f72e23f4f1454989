"""Residency at the gateway: what a region's tasks may send away from it, and which stored XComs may be read from where.

A worker's own checks are for the task's sake. These hold whatever a task or a worker sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from airbridge.control_plane.gateway.auth import strict
from airbridge.control_plane.gateway.triggers.events import Fired
from airbridge.control_plane.gateway.validation.bodies import Body, Route
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.policy.decisions import OWN, Access, Policy, Ruling, Source, TaskFacts
from airbridge.core.catalogue import Catalogue
from airbridge.core.residency import xcoms
from airbridge.core.residency.settings import Kept, kept
from airbridge.core.residency.xcoms import CLASSNAME, ObjectName, StoredXCom
from airbridge.core.violations import Violation

_OPEN: Final = Kept()
_TASK_ID: Final = re.compile(r"[\w.-]{1,250}")


@dataclass(frozen=True, slots=True)
class Residency:
    """Rules of the catalogue's regions."""

    places: Mapping[tuple[str, str], Kept] = field(default_factory=dict)

    @classmethod
    def of(cls, catalogue: Catalogue) -> Residency:
        """Return the rules of a catalogue."""
        return cls({(region.name, pool.name): kept(region, pool) for region, pool in catalogue.places()})

    def of_task(self, task: TaskFacts) -> Kept:
        """Return the rules of a task's pool."""
        return self.places.get((task.region, task.pool), _OPEN)

    def why_not(self, task: TaskFacts, route: Route, body: Body, name: str) -> str | None:
        """Return why a body may not leave the task's region, or None. `name` is the key of an XCom."""
        rules = self.of_task(task)
        if rules.strict and (why := strict.why_not(route, body.value)) is not None:
            return why
        return self._why_no_xcom(task, body.value, name) if route is Route.XCOM else None

    def why_no_event(self, task: TaskFacts, fired: Fired) -> str | None:
        """Return why an event of a trigger may not leave its task's region, or None."""
        if self.of_task(task).strict and (why := strict.why_no_event(fired)) is not None:
            return why
        for key, value in (fired.xcoms or {}).items():
            if (why := self._why_no_xcom(task, value, key)) is not None:
                return f"XCom {key[:64]!r} of a trigger's event: {why}; a trigger stores none, a task that it resumes does"
        return None

    def _why_no_xcom(self, task: TaskFacts, value: object, key: str) -> str | None:
        try:
            return _why_no_xcom(task, self.of_task(task), value, key)
        except Violation as violation:
            return self.describe(task, violation)

    def describe(self, task: TaskFacts, violation: Violation) -> str:
        """Return a violation's text for the audit trail and the task; of a strict region it quotes nothing of the body."""
        if self.of_task(task).strict:
            return f"what it has is refused (not quoted: strict residency); allowed: {violation.allowed}"
        return str(violation)


NO_RESIDENCY: Final = Residency()


def _why_no_xcom(task: TaskFacts, rules: Kept, value: object, key: str) -> str | None:
    if _mentions_reference(value, inside=True):
        return "a reference to a stored XCom stands alone, and not within a value"
    if xcoms.is_reference(value) and isinstance(value, dict):
        return _why_no_reference(task, rules, StoredXCom.decode(value))
    if rules.inline_bytes is None or (key == xcoms.SKIP_KEY and _is_skip(value)):
        return None
    size = len(xcoms.text_of(value))
    if size > rules.inline_bytes:
        return f"an XCom of {size} bytes; pool {task.pool}@{task.region} keeps those of more than {rules.inline_bytes} in the region"
    return None


def _why_no_reference(task: TaskFacts, rules: Kept, stored: StoredXCom) -> str | None:
    if rules.inline_bytes is None:
        return f"pool {task.pool}@{task.region} stores no XComs"
    if stored.region != task.region or not stored.object.owned_by(task.dag_id, task.run_id, task.item_id):
        return "a reference to an object that this attempt of the task did not write"
    if len(stored.preview) > rules.preview_bytes:
        return f"a preview of {len(stored.preview)} characters; at most {rules.preview_bytes} are allowed"
    return None


def _mentions_reference(value: object, *, inside: bool = False) -> bool:
    """Return whether a reference stands within a value (`inside`), or is it."""
    waiting, first = [value], True
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if each.get(CLASSNAME) == xcoms.CLASS and not (first and inside):
                return True
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
        first = False
    return False


def _is_skip(value: object) -> bool:
    """Return whether a value is what the scheduler reads under `xcoms.SKIP_KEY`: lists of task ids."""
    return isinstance(value, dict) and all(
        name in {"skipped", "followed"}
        and isinstance(ids, list)
        and all(isinstance(each, str) and _TASK_ID.fullmatch(each) for each in ids)
        for name, ids in value.items()
    )


@dataclass(frozen=True, slots=True)
class StoredRead:
    """A read of a stored XCom that is granted, and the rule that grants it."""

    region: str
    object: ObjectName
    rule: str
    access: Access


def judge_read(path: str, task: TaskFacts, scopes: Scopes, policy: Policy) -> StoredRead | Ruling:
    """Return the read of a stored XCom that a path names, or its denial: its DAG by name, and its region by rule."""
    _, region, key = path.split("/", 2)
    try:
        name = ObjectName.parse(key)
    except Violation as violation:
        return Ruling(False, "xcoms: not stored", str(violation))
    access = Access("xcoms:read", region, name.dag_id)
    if not scopes.allow(access.action, None, region=task.region, pool=task.pool):
        return Ruling(
            False, f"scope {access.action}", f"no scope of this worker's token allows {access.action}"
        )
    asked = [access]
    if region != task.region:
        asked.append(Access("xcoms:from_region", region))
    rulings = [policy.judge(task, each) for each in asked]
    denied = next((each for each in rulings if not each.allowed), None)
    return denied or StoredRead(region, name, _rule(rulings), access)


@dataclass(frozen=True, slots=True)
class SecretPlaces:
    """Places in which a task may read a connection or a variable, and the rule that allows the first."""

    access: Access
    places: tuple[Source, ...]
    backend: str
    rule: str


def judge_secret(
    path: str, task: TaskFacts, scopes: Scopes, policy: Policy, residency: Residency
) -> SecretPlaces | Ruling:
    """Return where a secret may be read by a task whose pool has a secrets backend, or the denial."""
    _, kind, name = path.split("/", 2)
    backend = residency.of_task(task).secrets_backend
    if backend is None:
        why = f"pool {task.pool}@{task.region} has no secrets_backend"
        return Ruling(False, "secrets: no backend", why)
    access = Access(f"{kind}:read", name, source=Source.REGION)
    if not scopes.allow(access.action, name, region=task.region, pool=task.pool):
        return Ruling(
            False, f"scope {access.action}", f"no scope of this worker's token allows {access.action}"
        )
    rulings = {source: policy.judge(task, replace(access, source=source)) for source in Source}
    places = tuple(source for source, ruling in rulings.items() if ruling.allowed)
    if not places:
        return rulings[Source.REGION]
    return SecretPlaces(access, places, backend, rulings[places[0]].rule)


def _rule(rulings: Sequence[Ruling]) -> str:
    named = [each.rule for each in rulings if each.rule != OWN]
    return ", ".join(dict.fromkeys(named)) or OWN
