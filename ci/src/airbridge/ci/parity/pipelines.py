"""The workflows' jobs against ci/pipelines.toml: triggers, permissions, conditions and steps, none more and none less."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import yaml

from airbridge.ci.checkout import Source
from airbridge.ci.exceptions import CiError
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.parity.inventory import registry
from airbridge.ci.parity.inventory.registry import Action

FILE = "ci/pipelines.toml"
FOLDER = ".github/workflows"
_KEYS = (
    "needs",
    "if",
    "environment",
    "uses",
    "permissions",
    "continue-on-error",
    "container",
    "services",
    "runs-on",
    "defaults",
    "env",
)


@dataclass(frozen=True)
class Place:
    """A job of a workflow's file, and the actions of the inventory."""

    path: str
    job: str
    known: Mapping[str, Action]


@dataclass(frozen=True)
class Step:
    """One line of a job: what it does, and where it stands."""

    text: str
    line: int


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in .github/workflows."""
    agreed, known = facts.checkout.source(FILE), registry.load(facts.checkout).action
    seen = set()
    for path in facts.checkout.glob(f"{FOLDER}/*.y*ml"):
        source = facts.checkout.source(path)
        try:
            root = compose(source)
        except CiError as error:
            yield Finding(
                path, _line_of_error(error), "workflow-file", str(error), "must be YAML, each key once"
            )
            continue
        yield from _workflow(agreed, source, root, known)
        seen |= {f"{PurePath(path).stem}/{name}" for name in _mapping(_child(root, "jobs"))}
    for name in agreed.toml.get("job", {}):
        if name not in seen:
            line = agreed.line(re.escape(f'[job."{name}"]'))
            yield Finding(FILE, line, "pipeline-job", f"has the job {name}", f"{FOLDER} has no such job")


def compose(source: Source) -> yaml.Node:
    """The file's nodes, with their lines; CiError if it is not YAML or has a key twice."""
    return _composed(source.text)


@lru_cache(maxsize=32)
def _composed(text: str) -> yaml.Node:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise CiError(f"is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise CiError("is not YAML: no mapping, line 1")
    _unique(root)
    return root


def _unique(node: yaml.Node) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [str(key.value) for key, _ in node.value]
        for key, value in node.value:
            if keys.count(str(key.value)) > 1:
                raise CiError(f"has the key {key.value} twice, line {key.start_mark.line + 1}")
            _unique(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _unique(value)


def _line_of_error(error: CiError) -> int:
    found = re.search(r"line (\d+)", str(error))
    return int(found[1]) if found else 1


def _mapping(node: yaml.Node | None) -> dict[str, yaml.Node]:
    return {str(key.value): value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def _child(node: yaml.Node | None, *keys: str) -> yaml.Node | None:
    for key in keys:
        node = _mapping(node).get(key)
    return node


def _plain(node: yaml.Node | None) -> Any:
    """A node's value without types: texts, lists and mappings of texts."""
    if isinstance(node, yaml.MappingNode):
        return {key: _plain(value) for key, value in _mapping(node).items()}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value) for value in node.value]
    return str(node.value) if node is not None else None


def _at(node: yaml.Node | None, otherwise: int = 1) -> int:
    return int(node.start_mark.line) + 1 if node is not None else otherwise


def _workflow(
    agreed: Source, source: Source, root: yaml.Node, known: Mapping[str, Action]
) -> Iterator[Finding]:
    name = PurePath(source.path).stem
    triggers = _plain(_child(root, "on"))
    actual = [triggers] if isinstance(triggers, str) else list(triggers or ())
    if actual != (expected := agreed.toml.get("on", {}).get(name)):
        line = _at(_child(root, "on"))
        yield Finding(
            source.path, line, "pipeline-trigger", f"is started by {actual}", f"{FILE} says {expected}"
        )
    if _plain(_child(root, "permissions")) != {}:
        line = _at(_child(root, "permissions"))
        yield Finding(
            source.path,
            line,
            "pipeline-permissions",
            f"the workflow's permissions are {_plain(_child(root, 'permissions'))}",
            "must be {}: each job names its own",
        )
    for key, node in _mapping(root).items():
        if key not in ("name", "on", "permissions", "concurrency", "jobs"):
            yield Finding(
                source.path,
                _at(node),
                "pipeline-key",
                f"has {key} for all jobs",
                "must say it in the job that needs it",
            )
    for job, node in _mapping(_child(root, "jobs")).items():
        expected = agreed.toml.get("job", {}).get(f"{name}/{job}")
        if expected is None:
            yield Finding(
                source.path, _at(node) - 1, "pipeline-job", f"has a job {job}", f"{FILE} has no such job"
            )
        else:
            if "steps" in expected:
                expected = {"runs-on": agreed.toml.get("runner"), **expected}
            yield from _job(Place(source.path, job, known), node, expected)


def _job(place: Place, node: yaml.Node, expected: dict[str, Any]) -> Iterator[Finding]:
    path, name = place.path, place.job
    for key in _KEYS:
        if (actual := _plain(_child(node, key))) != (wanted := expected.get(key)):
            check = "pipeline-permissions" if key == "permissions" else "pipeline-job"
            actual_text = f"{name}: {key} is {actual}"
            yield Finding(
                path, _at(_child(node, key), _at(node)), check, actual_text, f"{FILE} says {wanted}"
            )
    matrix = _child(node, "strategy", "matrix")
    if _plain(matrix) != expected.get("matrix"):
        actual_text = f"{name}: the matrix is {_plain(matrix)}"
        yield Finding(
            path,
            _at(matrix, _at(node)),
            "pipeline-matrix",
            actual_text,
            f"{FILE} says {expected.get('matrix')}",
        )
    steps, wanted = list(_steps(node, place.known)), list(expected.get("steps", ()))
    for change, first, last, from_, to in SequenceMatcher(
        a=[s.text for s in steps], b=wanted, autojunk=False
    ).get_opcodes():
        if change == "equal":
            continue
        line = steps[min(first, len(steps) - 1)].line if steps else _at(node)
        has = "; ".join(step.text for step in steps[first:last]) or "nothing"
        yield Finding(
            path,
            line,
            "pipeline-step",
            f"{name}: has {has[:120]} here",
            f"{FILE} says: {'; '.join(wanted[from_:to])[:160] or 'nothing'}",
        )


def _steps(job: yaml.Node, known: Mapping[str, Action]) -> Iterator[Step]:
    steps = _child(job, "steps")
    for node in steps.value if isinstance(steps, yaml.SequenceNode) else ():
        fields = _plain(node)
        condition = "".join(
            f" {key} {fields[key]}"
            for key in ("if", "continue-on-error", "shell", "working-directory")
            if key in fields
        )
        if "uses" in fields:
            name, _, commit = fields["uses"].partition("@")
            # However the file writes it: a commit other than the inventory's is part of the step.
            agreed = name in known and known[name].commit == commit
            options = ", ".join(
                f"{key}={' '.join(value.split())}" for key, value in fields.get("with", {}).items()
            )
            given = f" with {options}" if options else ""
            yield Step(
                f"uses {name if agreed else fields['uses']}{given}{condition}", _at(_child(node, "uses"))
            )
        for key, value in fields.get("env", {}).items():
            yield Step(f"env {key}={value}", _at(_child(node, "env", key)))
        if "uses" in fields and "run" in fields:
            yield Step("uses and run in one step", _at(_child(node, "run")))
        if "run" in fields:
            script = _child(node, "run")
            first = _at(script) + (script.style in ("|", ">") if isinstance(script, yaml.ScalarNode) else 0)
            for offset, line in enumerate(fields["run"].rstrip("\n").split("\n")):
                yield Step(f"run {line.strip()}{'' if offset else condition}", first + offset)
