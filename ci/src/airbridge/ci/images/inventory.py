"""Inventory of an image, read from its file system: Python distributions and Debian packages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import PurePosixPath
from typing import Literal

from airbridge.ci.images.layout import Layout

Kind = Literal["pypi", "deb"]


@dataclass(frozen=True, order=True)
class Package:
    """One installed package; `source` is the Debian source package, the name in security trackers."""

    kind: Kind
    name: str
    version: str
    license: str = ""
    architecture: str = ""
    source: str = ""


@dataclass(frozen=True)
class Inventory:
    """All packages of one image, in order, and the system's release ("12")."""

    packages: tuple[Package, ...]
    system: str

    def versions(self, kind: Kind) -> dict[str, str]:
        """Version by name."""
        return {package.name: package.version for package in self.packages if package.kind == kind}


def normalise(name: str) -> str:
    """A distribution's name as the lock writes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def take(layout: Layout) -> Inventory:
    """Read an image."""
    packages = [*_distributions(layout), *_debs(layout)]
    return Inventory(tuple(sorted(packages)), _system(layout))


def _distributions(layout: Layout) -> list[Package]:
    found = []
    for file in layout.files.values():
        path = PurePosixPath(file.path)
        if file.text is None or path.name != "METADATA":
            continue
        headers = HeaderParser().parsestr(file.text)
        terms = headers["License-Expression"] or headers["License"] or ""
        found.append(
            Package("pypi", normalise(headers["Name"]), headers["Version"], license=_one_line(terms))
        )
    return found


def _debs(layout: Layout) -> list[Package]:
    status = layout.files.get("/var/lib/dpkg/status")
    found = []
    for paragraph in (status.text or "").split("\n\n") if status else ():
        headers = HeaderParser().parsestr(paragraph)
        if headers["Package"] and headers["Status"] == "install ok installed":
            source = (headers["Source"] or headers["Package"]).split(" ")[0]
            found.append(
                Package(
                    "deb",
                    headers["Package"],
                    headers["Version"],
                    architecture=headers["Architecture"],
                    source=source,
                )
            )
    return found


def _one_line(text: str) -> str:
    first = text.strip().splitlines()[0].strip() if text.strip() else ""
    return first if len(first) <= 80 else ""


def _system(layout: Layout) -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        if (file := layout.files.get(path)) and file.text:
            found = re.search(r'^VERSION_ID="?([\d.]+)"?', file.text, re.MULTILINE)
            return found[1] if found else ""
    return ""
