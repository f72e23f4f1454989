"""``policy.toml``: which tasks may claim, read, write, trigger and change what. What no rule allows is denied.

A task's own is never asked about: its state, its XComs, the XComs and run states of its own DAG, its declared assets.
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

from airbridge.control_plane.policy import OWN, Access, Ruling, TaskFacts
from airbridge.executor.exceptions import ConfigurationError
from airbridge.executor.regions import Catalogue

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
    """Other DAGs, whose XComs may be read."""

    read: Patterns = ()


class DagRuns(_Table):
    """DAGs: others whose runs' and tasks' states may be read; any whose runs may be triggered or cleared."""

    read: Patterns = ()
    trigger: Patterns = ()


class Assets(_Table):
    """Names or URIs of assets that the task does not declare itself."""

    read: Patterns = ()
    change: Patterns = ()


class Rule(_Table):
    """What tasks of `dags`, running in `pools` of `regions`, may do."""

    name: str
    comment: str = ""
    regions: Patterns = Field(default=("*",), min_length=1)
    pools: Patterns = Field(default=("*",), min_length=1)
    dags: Patterns = Field(min_length=1)
    queues: Queues = Queues()
    connections: Connections = Connections()
    variables: Variables = Variables()
    xcoms: XComs = XComs()
    dag_runs: DagRuns = DagRuns()
    assets: Assets = Assets()

    @field_validator("name")
    @classmethod
    def _speakable(cls, value: str) -> str:
        if not _RULE_NAME.fullmatch(value) or value == OWN:
            raise ValueError(
                f"must match {_RULE_NAME.pattern} and not be {OWN!r}, like 'etl-reads-warehouse'"
            )
        return value

    def applies(self, region: str, pool: str, dag_id: str) -> bool:
        """Whether the rule speaks of such a task."""
        return matches(self.regions, region) and matches(self.pools, pool) and matches(self.dags, dag_id)

    def patterns(self, key: Key) -> Patterns:
        """Return what stands under a key."""
        found: Patterns = getattr(getattr(self, key.table), key.verb)
        return found


class Document(_Table):
    """The whole file."""

    version: Literal[1] = Field(alias="schema")
    rule: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """A place in a rule, and how a denial speaks of it."""

    table: str
    verb: str
    words: str
    of_dag: bool = False
    """Whether its patterns are of DAGs."""

    def __str__(self) -> str:
        return f"{self.table}.{self.verb}"


KEYS: Final = {
    "work:claim": Key("queues", "claim", "run from queue"),
    "connections:read": Key("connections", "read", "read connection"),
    "variables:read": Key("variables", "read", "read variable"),
    "variables:write": Key("variables", "write", "write variable"),
    "xcoms:read": Key("xcoms", "read", "read the XComs of DAG", of_dag=True),
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
    """The rules of one file."""

    rules: tuple[Rule, ...]
    source: str
    """The file, for messages."""
    digest: str
    """SHA-256 of the file's content, hex."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises `ConfigurationError` naming file, rule and key, and what would be right."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"the policy {path} cannot be read: {error.strerror}; it must be a readable TOML file"
            ) from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, source: str) -> Self:
        """Read a file's content; see `read`."""
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
        names = [rule.name for rule in document.rule]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ConfigurationError(f"{source}: rule names must differ; given twice: {', '.join(doubled)}")
        return cls(document.rule, source, hashlib.sha256(content).hexdigest())

    def judge(self, task: TaskFacts, access: Access) -> Ruling:
        """See `Policy.judge`."""
        if access.action in _ALWAYS_OWN or _is_own(task, access):
            return Ruling(True, OWN)
        key = KEYS.get(access.action)
        if key is None:
            return Ruling(False, access.action, f"policy: no rule can allow {access.action}")
        asked = names(key, access)
        applying = [rule for rule in self.rules if rule.applies(task.region, task.pool, task.dag_id)]
        for rule in applying:
            if any(matches(rule.patterns(key), name) for name in asked):
                return Ruling(True, rule.name)
        return Ruling(False, f"policy: no {key}", self._denial(task, key, asked, applying))

    def _denial(self, task: TaskFacts, key: Key, asked: Sequence[str], applying: Sequence[Rule]) -> str:
        name = asked[0] if asked else ""
        said = f"policy: DAG {task.dag_id!r} in {task.pool}@{task.region} may not {key.words} {name!r}. "
        file = Path(self.source).name
        listed = _literal(name)
        new = (
            f"a [[rule]] of {file} with dags = {_literal(task.dag_id)}, regions = {_literal(task.region)}, "
            f"pools = {_literal(task.pool)}, {key} = {listed}"
        )
        # The closest rule: one that is about this DAG and not about every DAG.
        close = [rule.name for rule in applying if "*" not in rule.dags]
        if close:
            return f"{said}It would be allowed by {key} = {listed} in rule {close[0]!r}, or by {new}"
        return f"{said}It would be allowed by {new}"


class OwnOnly:
    """Without a file: every task of the pool's queue is run, and none reaches beyond its own."""

    def __init__(self) -> None:
        self._rules = RulePolicy((), "policy.toml", "")

    def judge(self, task: TaskFacts, access: Access) -> Ruling:
        """See `Policy.judge`."""
        if access.action == "work:claim":
            return Ruling(True, OWN)
        ruling = self._rules.judge(task, access)
        if ruling.allowed:
            return ruling
        return Ruling(False, ruling.rule, f"{ruling.why} ([airbridge] policy_file is not set)")


def names(key: Key, access: Access) -> tuple[str, ...]:
    """Return the names that a rule's patterns are compared with; one of them has to match."""
    if key.of_dag:
        return (access.dag_id or "",)
    return tuple(name for name in (access.name, access.uri) if name)


def matches(patterns: Sequence[str], name: str) -> bool:
    """Whether one of the patterns matches; ``*`` stands for any characters, ``?`` for one."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unknown_places(policy: RulePolicy, catalogue: Catalogue) -> Iterator[str]:
    """Yield what is wrong with rules that name a region or pool that the catalogue does not have."""
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
    """Yield what is allowed to stand in a policy and is seldom meant."""
    if not any(rule.queues.claim for rule in policy.rules):
        yield f"{policy.source}: no rule has queues.claim: no task will run on any worker"
    for rule in policy.rules:
        if not any(rule.patterns(key) for key in KEYS.values()):
            yield f"{policy.source}: rule {rule.name!r} allows nothing"


def _literal(name: str) -> str:
    """Return a list for the file that matches this name alone."""
    exact = re.sub(r"([*?[])", r"[\1]", name)
    return f"[{json.dumps(exact, ensure_ascii=False)}]"


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
        return ["schema", "rule"]
    if len(location) == 3:
        return list(Rule.model_fields)
    table = Rule.model_fields[location[2]].annotation
    return list(getattr(table, "model_fields", {}))


@dataclass(frozen=True, slots=True)
class Consideration:
    """One rule, and whether it allows an access, with the reason."""

    rule: str
    allows: bool
    why: str


def considered(
    policy: RulePolicy, region: str, pool: str, dag_id: str, access: Access
) -> list[Consideration]:
    """Return what each rule says to an access of a task, in the file's order."""
    key = KEYS[access.action]
    return [_consider(rule, key, names(key, access), (region, pool, dag_id)) for rule in policy.rules]


def _consider(rule: Rule, key: Key, asked: Sequence[str], place: tuple[str, str, str]) -> Consideration:
    for what, patterns, value in zip(
        ("regions", "pools", "dags"), (rule.regions, rule.pools, rule.dags), place, strict=True
    ):
        if not matches(patterns, value):
            return Consideration(rule.name, False, f"{what} = {list(patterns)} does not match {value!r}")
    patterns = rule.patterns(key)
    if not patterns:
        return Consideration(rule.name, False, f"it has no {key}")
    if any(matches(patterns, name) for name in asked):
        return Consideration(rule.name, True, f"{key} = {list(patterns)}")
    return Consideration(
        rule.name, False, f"{key} = {list(patterns)} does not match {' or '.join(map(repr, asked))}"
    )
