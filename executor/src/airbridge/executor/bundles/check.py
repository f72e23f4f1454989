"""Checks of a tree of DAG code before it is published: it parses, its tasks can be placed, its DAG ids are free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ParseFailure
from airbridge.executor import _airflow
from airbridge.executor.bundles import parsing
from airbridge.executor.bundles.parsing import ParseReport
from airbridge.executor.placement.check import EXECUTOR, PlacementCheck
from airbridge.executor.placement.placement import Placement
from airbridge.executor.settings import Settings

# (bundle, DAG ids) -> the other bundle and its file that define one, by DAG id.
TakenIds = Callable[[str, Collection[str]], Mapping[str, str]]


def _none(_bundle: str, _dag_ids: Collection[str]) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class TreeCheck:
    """Checks with one environment of the parser's child process. `required`: a host that cannot confine it fails every tree."""

    environment: Mapping[str, str]
    timeout_seconds: float = 120.0
    required: bool = False
    placement: PlacementCheck | None = None
    taken: TakenIds = _none

    def __call__(self, bundle: str, tree: Path, packages: Path | None = None) -> ParseReport:
        """Return the parser's report with the failures of the other checks added. Raises `BundleError`.

        `packages` is the unpacked environment that the tree's files import from.
        """
        report = parsing.check(
            tree,
            packages=packages,
            environment=self.environment,
            timeout_seconds=self.timeout_seconds,
            required=self.required,
        )
        return report.with_failures((*self._unplaced(tree, report), *self._taken(bundle, report)))

    def _unplaced(self, tree: Path, report: ParseReport) -> Iterator[ParseFailure]:
        if self.placement is not None:
            yield from self.placement.failures(tree, report.tasks)

    def _taken(self, bundle: str, report: ParseReport) -> Iterator[ParseFailure]:
        others = self.taken(bundle, report.files)
        for dag_id, owner in sorted(others.items()):
            yield ParseFailure(report.files[dag_id], None, taken_error(dag_id, owner))


def taken_error(dag_id: str, owner: str) -> str:
    """Return the error of a DAG id that another bundle has."""
    return f"DAG {dag_id!r} is defined by {owner} already: rename it here, or remove it there first"


def placement_check(catalogue: Catalogue, settings: Settings) -> PlacementCheck:
    """Return the check of this deployment's placement. Raises `ConfigurationError`."""
    default = _airflow.airflow_option("operators", "default_queue") or "default"
    placement = Placement(catalogue, settings, ("default", default))
    return PlacementCheck(placement, _airflow.airflow_option("core", "executor") or EXECUTOR)
