"""Checks of parity as gates: each runs again only if a mutant changes a file that it read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.parity_mutants.overlay import Overlay

from airbridge.ci.exceptions import CiError
from airbridge.ci.parity import checks, stacks
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.parity.inventory import registry, scan


@dataclass(frozen=True)
class Gates:
    """The gates over one project."""

    project: Overlay
    reads: dict[str, frozenset[str]]

    @classmethod
    def over(cls, project: Overlay) -> Gates:
        """Learn what each gate reads; ValueError if one finds something before anything is planted."""
        reads, found = {}, []
        for name, check in _checks().items():
            noting = replace(project, reads=set(), _cache={})
            found += checks.guarded(check, Facts(noting))
            reads[name] = frozenset(noting.reads)
        if found:
            raise ValueError(f"the project is not clean: {found}")
        return cls(project, reads)

    def findings(self, changes: dict[str, str | None]) -> list[tuple[str, Finding]]:
        """Findings by gate, of the project with `changes`."""
        changed = replace(self.project, changes=changes, reads=set(), _cache={})
        added = any(path not in self.project.base for path in changes)
        found: list[tuple[str, Finding]] = []
        for name, check in _checks().items():
            if name == "inventory":
                found += [(name, each) for each in self._inventory(changed)]
            elif added or self.reads[name] & changes.keys():
                found += [(name, each) for each in checks.guarded(check, Facts(changed))]
        return found

    def _inventory(self, changed: Overlay) -> list[Finding]:
        facts = Facts(changed)
        if registry.FILE in changed.changes:
            return checks.guarded(scan.check, facts)
        known = registry.load(changed)
        found = list(scan.missing(facts, known, frozenset(changed.tracked())))
        for path in changed.changes:
            if changed.has(path) and not path.startswith("infra/cdktf.out/"):
                try:
                    found += scan.check_file(facts, known, path)
                except CiError as error:
                    found.append(checks.unreadable(error))
        return found


def _checks() -> dict[str, checks.Check]:
    return {**checks.SOURCES, "synthesised": stacks.check_synthesised}
