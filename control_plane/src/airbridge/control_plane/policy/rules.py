"""Rules of ``policy.toml``: access of tasks to queues, connections, variables, XComs, DAG runs and assets. Default deny.

A task's own resources need no rule: its state, its XComs, the XComs and run states of its own DAG, its declared assets.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from airbridge.control_plane.policy import residency
from airbridge.control_plane.policy.decisions import DEFINE, OWN, Access, Ruling, TaskFacts
from airbridge.control_plane.policy.residency import ResidencyRule
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError

SCHEMA: Final = 1
_RULE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
Pattern = Annotated[str, Field(min_length=1, max_length=250)]
Patterns = tuple[Pattern, ...]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Queues(_Table):
    """Queues of the task's own pool, as tasks name them."""

    claim: Patterns = ()


class Connections(_Table):
    """Connection ids."""

    read: Patterns = ()


class Variables(_Table):
    """Variable keys. Writing does not include reading."""

    read: Patterns = ()
    write: Patterns = ()


class XComs(_Table):
    """Ids of other DAGs whose XComs may be read, and other regions whose stored XComs may be."""

    read: Patterns = ()
    from_regions: Patterns = ()


class DagRuns(_Table):
    """Ids of other DAGs whose run and task states may be read, and of any DAGs whose runs may be triggered or cleared."""

    read: Patterns = ()
    trigger: Patterns = ()


class Assets(_Table):
    """Names or URIs of assets that the task does not declare itself."""

    read: Patterns = ()
    change: Patterns = ()


class Rule(_Table):
    """Rule for tasks of `dags`, defined by `bundles`, that run in `pools` of `regions`."""

    name: str
    comment: str = ""
    regions: Patterns = Field(default=("*",), min_length=1)
    pools: Patterns = Field(default=("*",), min_length=1)
    bundles: Patterns = Field(default=("*",), min_length=1)
    dags: Patterns = Field(min_length=1)
    queues: Queues = Queues()
    connections: Connections = Connections()
    variables: Variables = Variables()
    xcoms: XComs = XComs()
    dag_runs: DagRuns = DagRuns()
    assets: Assets = Assets()

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not _RULE_NAME.fullmatch(value) or value == OWN:
            raise ValueError(
                f"must match {_RULE_NAME.pattern} and not be {OWN!r}, like 'etl-reads-warehouse'"
            )
        return value

    def applies(self, task: TaskFacts) -> bool:
        """Return whether the rule applies to such a task."""
        return all(matches(patterns, value) for _, patterns, value in self.selectors(task))

    def selectors(self, task: TaskFacts) -> tuple[tuple[str, Patterns, str], ...]:
        """Return the keys that choose tasks, with their patterns and the task's value."""
        return (
            ("regions", self.regions, task.region),
            ("pools", self.pools, task.pool),
            ("bundles", self.bundles, task.bundle),
            ("dags", self.dags, task.dag_id),
        )

    def patterns(self, key: Key) -> Patterns:
        """Return the patterns of a key."""
        found: Patterns = getattr(getattr(self, key.table), key.verb)
        return found


class Bundle(_Table):
    """A DAG bundle, and the DAG ids that it alone may define."""

    name: Annotated[str, Field(min_length=1, max_length=250)]
    comment: str = ""
    dags: Patterns = Field(min_length=1)


class Document(_Table):
    """Content of the file."""

    version: Literal[1] = Field(alias="schema")
    bundle: tuple[Bundle, ...] = ()
    rule: tuple[Rule, ...] = ()
    residency: tuple[ResidencyRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """Key of a rule, and its phrase for denials."""

    table: str
    verb: str
    phrase: str
    #: True if its patterns match DAG ids.
    of_dag: bool = False

    def __str__(self) -> str:
        return f"{self.table}.{self.verb}"


KEYS: Final = {
    "work:claim": Key("queues", "claim", "run from queue"),
    "connections:read": Key("connections", "read", "read connection"),
    "variables:read": Key("variables", "read", "read variable"),
    "variables:write": Key("variables", "write", "write variable"),
    "xcoms:read": Key("xcoms", "read", "read the XComs of DAG", of_dag=True),
    "xcoms:from_region": Key("xcoms", "from_regions", "read XComs that are stored in region"),
    "task_instances:read": Key("dag_runs", "read", "read the task states of DAG", of_dag=True),
    "dag_runs:read": Key("dag_runs", "read", "read the runs of DAG", of_dag=True),
    "dag_runs:write": Key("dag_runs", "trigger", "trigger or clear runs of DAG", of_dag=True),
    "assets:read": Key("assets", "read", "read asset"),
    "assets:change": Key("assets", "change", "change asset"),
}
_OWN_DAG: Final = frozenset({"xcoms:read", "task_instances:read", "dag_runs:read"})
_ALWAYS_OWN: Final = frozenset({"task_instances:write", "xcoms:write"})


@dataclass(frozen=True, slots=True)
class RulePolicy:
    """Rules of one file."""

    rules: tuple[Rule, ...]
    #: Path of the file, for messages.
    source: str
    #: SHA-256 of the file's content, in hex.
    digest: str
    bundles: tuple[Bundle, ...] = ()
    residency: tuple[ResidencyRule, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises `ConfigurationError` naming the file, rule, key and the expected value."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"the policy {path} cannot be read: {error.strerror}; it must be a readable TOML file"
            ) from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, source: str) -> Self:
        """Parse a file's content; see `read`."""
        try:
            data = tomllib.loads(content.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{source}: not TOML: {error}") from error
        try:
            document = Document.model_validate(data)
        except ValidationError as error:
            raise ConfigurationError(
                "\n".join(_explain(source, data, each) for each in error.errors())
            ) from None
        names = [each.name for each in document.rule] + [each.name for each in document.residency]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigurationError(
                f"{source}: rule names must be unique; duplicates: {', '.join(repeated)}"
            )
        digest = hashlib.sha256(content).hexdigest()
        return cls(document.rule, source, digest, document.bundle, document.residency)

    def judge(self, task: TaskFacts, access: Access) -> Ruling:
        """Return the decision on an access; see `Policy.judge`."""
        if access.action == DEFINE:
            return self._judge_definition(task)
        if access.action in _ALWAYS_OWN or _is_own(task, access):
            return Ruling(True, OWN)
        key = KEYS.get(access.action)
        if key is None:
            return Ruling(False, access.action, f"policy: no rule can allow {access.action}")
        denied_by = residency.denial(self.residency, task, access)
        if denied_by is not None:
            return denied_by
        requested = names(key, access)
        applying = [rule for rule in self.rules if rule.applies(task)]
        allowing = {name: _first(applying, key, name) for name in requested}
        denied = [name for name, rule in allowing.items() if rule is None]
        if not denied and (allowed := [*filter(None, allowing.values())]):
            return Ruling(True, ", ".join(dict.fromkeys(rule.name for rule in allowed)))
        return Ruling(False, f"policy: no {key}", self._denial(task, key, denied, applying))

    def _judge_definition(self, task: TaskFacts) -> Ruling:
        """Judge whether the task's bundle may define its DAG: by the bundles that list it, if there are any."""
        owners = [bundle.name for bundle in self.bundles if matches(bundle.dags, task.dag_id)]
        if not owners:
            return Ruling(True, OWN)
        if task.bundle in owners:
            return Ruling(True, f"bundle {task.bundle}")
        why = f"policy: DAG {task.dag_id!r} is of bundle {owners[0]!r}, not of {task.bundle!r} that defines it now"
        return Ruling(False, "policy: bundle", why)

    def _denial(self, task: TaskFacts, key: Key, denied: Sequence[str], applying: Sequence[Rule]) -> str:
        name = denied[0] if denied else ""
        denial = f"policy: DAG {task.dag_id!r} in {task.pool}@{task.region} may not {key.phrase} {name!r}. "
        file = Path(self.source).name
        listed = _literal(*denied or [""])
        new = (
            f"a [[rule]] of {file} with dags = {_literal(task.dag_id)}, regions = {_literal(task.region)}, "
            f"pools = {_literal(task.pool)}, {key} = {listed}"
        )
        # Suggest a rule that is specific to this DAG: adding to one for all DAGs would allow too much.
        close = [rule.name for rule in applying if "*" not in rule.dags]
        if close:
            return f"{denial}It would be allowed by {key} = {listed} in rule {close[0]!r}, or by {new}"
        return f"{denial}It would be allowed by {new}"


class OwnOnly:
    """Policy without a file: every task of the pool's queue runs, with access only to its own resources."""

    def __init__(self) -> None:
        self._rules = RulePolicy((), "policy.toml", "")

    def judge(self, task: TaskFacts, access: Access) -> Ruling:
        """Return the decision on an access; see `Policy.judge`."""
        if access.action in {"work:claim", DEFINE}:
            return Ruling(True, OWN)
        ruling = self._rules.judge(task, access)
        if ruling.allowed:
            return ruling
        return Ruling(False, ruling.rule, f"{ruling.why} ([airbridge] policy_file is not set)")


def names(key: Key, access: Access) -> tuple[str, ...]:
    """Return the names to match with rules' patterns; each of them must match one."""
    if key.of_dag:
        return (access.dag_id or "",)
    return tuple(dict.fromkeys(name for name in (access.name, access.uri) if name))


def _first(rules: Sequence[Rule], key: Key, name: str) -> Rule | None:
    return next((rule for rule in rules if matches(rule.patterns(key), name)), None)


def matches(patterns: Sequence[str], name: str) -> bool:
    """Return whether one of the patterns matches; ``*`` stands for any characters, ``?`` for one."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unknown_places(policy: RulePolicy, catalogue: Catalogue) -> Iterator[str]:
    """Yield an error for each region or pool pattern of the rules that matches nothing in the catalogue."""
    regions = sorted({region.name for region, _ in catalogue.places()})
    pools = sorted({pool.name for _, pool in catalogue.places()})
    for rule in policy.rules:
        for key, patterns, known in (("regions", rule.regions, regions), ("pools", rule.pools, pools)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in known):
                    yield (
                        f"{policy.source}: rule {rule.name!r}: {key}: {pattern!r} matches nothing; "
                        f"the catalogue has {', '.join(known)}"
                    )


def warnings(policy: RulePolicy) -> Iterator[str]:
    """Yield warnings about valid but probably unintended rules."""
    if not any(rule.queues.claim for rule in policy.rules):
        yield f"{policy.source}: no rule has queues.claim: no task will run on any worker"
    for rule in policy.rules:
        if not any(rule.patterns(key) for key in KEYS.values()):
            yield f"{policy.source}: rule {rule.name!r} allows nothing"


def _literal(*names: str) -> str:
    """Return a TOML list of patterns that match exactly these names."""
    return json.dumps([re.sub(r"([*?[])", r"[\1]", name) for name in names], ensure_ascii=False)


def _is_own(task: TaskFacts, access: Access) -> bool:
    return access.action in _OWN_DAG and access.dag_id in {None, task.dag_id}


def _explain(source: str, data: dict[str, Any], error: Any) -> str:
    where, key = _place(data, error["loc"])
    at = f"{source}: {where}{key}"
    if error["type"] == "missing":
        return f"{at}: is missing; {_RIGHT.get(key, 'it must be given')}"
    if error["type"] == "extra_forbidden":
        return f"{at}: is not a key; the keys here are: {', '.join(_keys(error['loc']))}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{at}: {message}; {_RIGHT[key]}" if key in _RIGHT else f"{at}: {message}"


_RIGHT: Final = {
    "schema": f"it must be {SCHEMA}",
    "dags": 'it must be a list of DAG ids or patterns, like ["etl_*"]',
    "name": "it must be a name of the rule's own, like 'etl-reads-warehouse'",
}


def _place(data: dict[str, Any], location: Sequence[Any]) -> tuple[str, str]:
    if location[:1] != ("rule",) or len(location) < 2:
        return "", ".".join(map(str, location))
    number, rest = location[1], location[2:]
    rules = data.get("rule")
    rule = rules[number] if isinstance(rules, list) else None
    name = rule.get("name") if isinstance(rule, dict) else None
    which = f"rule {number + 1} ({name!r}): " if name else f"rule {number + 1}: "
    return which, ".".join(str(part) for part in rest)


def _keys(location: Sequence[Any]) -> list[str]:
    if len(location) == 1:
        return ["schema", "bundle", "rule", "residency"]
    if location[0] in {"bundle", "residency"}:
        return list((Bundle if location[0] == "bundle" else ResidencyRule).model_fields)
    if len(location) == 3:
        return list(Rule.model_fields)
    table = Rule.model_fields[location[2]].annotation
    return list(getattr(table, "model_fields", {}))


@dataclass(frozen=True, slots=True)
class Consideration:
    """Result of one rule for an access, with the reason."""

    rule: str
    allows: bool
    why: str


def considered(policy: RulePolicy, task: TaskFacts, access: Access) -> list[Consideration]:
    """Return the result of each rule for an access of a task, in the file's order."""
    key = KEYS[access.action]
    return [_consider(rule, key, names(key, access), task) for rule in policy.rules]


def _consider(rule: Rule, key: Key, requested: Sequence[str], task: TaskFacts) -> Consideration:
    for what, patterns, value in rule.selectors(task):
        if not matches(patterns, value):
            return Consideration(rule.name, False, f"{what} = {list(patterns)} does not match {value!r}")
    patterns = rule.patterns(key)
    if not patterns:
        return Consideration(rule.name, False, f"it has no {key}")
    unmatched = [name for name in requested if not matches(patterns, name)]
    if requested and not unmatched:
        return Consideration(rule.name, True, f"{key} = {list(patterns)}")
    return Consideration(
        rule.name, False, f"{key} = {list(patterns)} does not match {' or '.join(map(repr, unmatched))}"
    )
