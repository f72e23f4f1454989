"""Check of the queues and hints of a DAG file's tasks before it is published: what placement would refuse later."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from airbridge.core.exceptions import ParseFailure, PlacementError
from airbridge.core.hints import KEY, Hints
from airbridge.executor.placement.placement import Placement

EXECUTOR: Final = "airbridge.executor.EdgeExecutor"
_QUOTED = re.compile(r"'([^']+)'")


@dataclass(frozen=True)
class TaskHints:
    """Queue and hints of a task, as its DAG file has them. `config` is its executor_config, of other keys the names alone."""

    file: str
    dag_id: str
    task_id: str
    queue: str | None
    executor: str | None
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class PlacementCheck:
    """Check against one placement; without one only of how the hints are written.

    `executors` is ``[core] executor``: the tasks of other executors are not checked.
    """

    placement: Placement | None = None
    executors: str = EXECUTOR

    def failures(self, root: Path, tasks: Sequence[TaskHints]) -> Iterator[ParseFailure]:
        """Yield a failure for each task that could not be placed, with the line in its file where it can be told."""
        for task in tasks:
            fault = self._fault(task) if _is_ours(task.executor, self.executors) else None
            if fault is not None:
                words = [*_wrong_words(fault), task.task_id.rpartition(".")[2]]
                line = _line_of(root / task.file, words)
                error = f"task {task.task_id!r} of DAG {task.dag_id!r}: {fault}"
                yield ParseFailure(task.file, line, error)

    def _fault(self, task: TaskHints) -> str | None:
        for key in task.config or ():
            if key != KEY and get_close_matches(key, [KEY], cutoff=0.75):
                return f"executor_config[{key!r}] is not known; did you mean {KEY!r}?"
        try:
            if self.placement is None:
                Hints.read(task.config)
            else:
                self.placement.decide(task.queue, task.config, {})
        except PlacementError as error:
            return str(error)
        return None


def _is_ours(executor: str | None, configured: str) -> bool:
    """Return whether a task's executor, or else the first configured one, is AirBridge's."""
    entries = [entry.strip() for entry in configured.split(",")]
    if executor is not None:
        # Configured as a path, or as ALIAS:PATH; a task names the alias, the path or the class.
        entries = [
            entry for entry in entries if executor in {*entry.rpartition(":")[::2], entry.rpartition(".")[2]}
        ]
    return bool(entries) and entries[0].rpartition(":")[2] == EXECUTOR


def _wrong_words(fault: str) -> Iterator[str]:
    """Yield what a fault quotes of the DAG file, without the names that every hint has."""
    for word in _QUOTED.findall(fault.partition("; ")[0]):
        if word != KEY and word not in Hints.model_fields:
            yield word


def _line_of(file: Path, words: Sequence[str]) -> int | None:
    """Return the line of the first of the words that the file has as a string or as the name of a function."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    lines: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines.setdefault(node.value, node.lineno)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines.setdefault(node.name, node.lineno)
    return next((lines[word] for word in words if word in lines), None)
