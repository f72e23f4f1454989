"""Requirements between installed packages, from the packages' own metadata: the edges of an SBOM's graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

# A dependency of a Debian package: name, then architecture, version and alternatives, which do not matter here.
_DEB = re.compile(r"^\s*([a-z0-9][a-z0-9+.-]*)")


@dataclass(frozen=True)
class Required:
    """A distribution's version and its `Requires-Dist` lines."""

    version: str
    lines: tuple[str, ...]


def python(distributions: Mapping[str, Required], minor: str) -> dict[str, list[str]]:
    """Return what each distribution needs of the others. Extras count where another distribution asks for them."""
    wanted: dict[str, set[str]] = {name: set() for name in distributions}
    edges: dict[str, set[str]] = {name: set() for name in distributions}
    changed = True
    while changed:
        changed = False
        for name, required in distributions.items():
            for requirement in _applicable(required, wanted[name], minor):
                other = str(canonicalize_name(requirement.name))
                if other not in distributions:
                    continue
                changed |= other not in edges[name] or not requirement.extras <= wanted[other]
                edges[name].add(other)
                wanted[other] |= requirement.extras
    return {name: sorted(needed - {name}) for name, needed in edges.items()}


def _applicable(required: Required, extras: set[str], minor: str) -> list[Requirement]:
    environment = {
        "python_version": minor or "3.12",
        "python_full_version": f"{minor or '3.12'}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    found = []
    for line in required.lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # metadata of old distributions
        marker = requirement.marker
        if marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras)):
            found.append(requirement)
    return found


def debian(installed: Mapping[str, Message]) -> dict[str, list[str]]:
    """Return what each Debian package needs of the installed ones; of alternatives, the first that is installed."""
    provided = {
        virtual: name for name, headers in installed.items() for virtual in _names(headers["Provides"], ",")
    }
    found = {}
    for name, headers in installed.items():
        needed = set()
        for field in ("Depends", "Pre-Depends"):
            for group in (headers[field] or "").replace("\n", " ").split(","):
                choices = [provided.get(each, each) for each in _names(group, "|")]
                needed |= {each for each in choices if each in installed and each != name} and {
                    next(each for each in choices if each in installed)
                }
        found[name] = sorted(needed - {name})
    return found


def _names(text: str | None, separator: str) -> list[str]:
    return [match[1] for each in (text or "").split(separator) if (match := _DEB.match(each))]
