"""Inventory of an image, read from its file system: Python distributions, Debian packages, and what neither of them lists.

That is CPython where it is not Debian's, and OpenSSL where a wheel brings its own.
"""

from __future__ import annotations

import csv
import hashlib
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import PurePosixPath
from typing import Literal

from airbridge.ci.images.layout import File, Layout
from airbridge.ci.images.requirements import Required, debian, python

Kind = Literal["pypi", "deb", "generic"]
CPYTHON = "cpython"
_PREFIX = "/usr/local"


@dataclass(frozen=True, order=True)
class Package:
    """One installed package; `source` is the Debian source package, the name in security trackers.

    `files` is the SHA-256 of the list of its files and their hashes, as `sha256sum` writes it, in the order of the paths.
    `requires` names packages of the same image that it needs, by kind and name.
    """

    kind: Kind
    name: str
    version: str
    license: str = ""
    architecture: str = ""
    source: str = ""
    files: str = ""
    requires: tuple[tuple[Kind, str], ...] = ()


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
    interpreter = list(_cpython(layout))
    packages = [*_distributions(layout, interpreter), *_debs(layout), *interpreter, *_openssl(layout)]
    return Inventory(tuple(sorted(set(packages))), _system(layout))


def _distributions(layout: Layout, interpreter: list[Package]) -> list[Package]:
    found: dict[str, tuple[PurePosixPath, Message]] = {}
    for file in layout.files.values():
        path = PurePosixPath(file.path)
        if file.text is not None and path.name == "METADATA":
            headers = HeaderParser().parsestr(file.text)
            found[normalise(headers["Name"])] = (path, headers)
    minor = next((match[1] for path in layout.files if (match := re.search(r"/python(3\.\d+)/", path))), "")
    needs = python({name: _required(headers) for name, (_, headers) in found.items()}, minor)
    packages = []
    for name, (path, headers) in found.items():
        terms = headers["License-Expression"] or headers["License"] or ""
        mine = list(_recorded(layout, path))
        bundled = sorted({("generic", f"openssl@{file.openssl}") for file in mine if file.openssl})
        below: list[tuple[Kind, str]] = [("generic", each.name) for each in interpreter]
        requires: list[tuple[Kind, str]] = [("pypi", each) for each in needs[name]]
        requires += [("generic", each) for _, each in bundled]
        packages.append(
            Package(
                "pypi",
                name,
                headers["Version"],
                license=_one_line(terms),
                files=_digest(mine),
                requires=tuple(requires + below),
            )
        )
    return packages


def _required(headers: Message) -> Required:
    return Required(headers["Version"], tuple(headers.get_all("Requires-Dist") or ()))


def _recorded(layout: Layout, metadata: PurePosixPath) -> Iterator[File]:
    """Yield the files that a distribution's RECORD lists, as they are in the image."""
    record = layout.files.get(str(metadata.with_name("RECORD")))
    for row in csv.reader((record.text or "").splitlines()) if record else ():
        path = posixpath.normpath(str(metadata.parent.parent / row[0]))
        if path in layout.files and not path.endswith("/RECORD"):
            yield layout.files[path]


def _digest(files: Iterable[File]) -> str:
    lines = sorted(f"{file.sha256}  {file.path}\n" for file in files)
    content = "".join(sorted(lines, key=lambda line: line.split("  ", 1)[1]))
    return hashlib.sha256(content.encode()).hexdigest() if content else ""


def _debs(layout: Layout) -> list[Package]:
    status = layout.files.get("/var/lib/dpkg/status")
    paragraphs = (
        HeaderParser().parsestr(each) for each in ((status.text or "").split("\n\n") if status else ())
    )
    installed = {
        each["Package"]: each
        for each in paragraphs
        if each["Package"] and each["Status"] == "install ok installed"
    }
    needs = debian(installed)
    return [
        Package(
            "deb",
            name,
            headers["Version"],
            architecture=headers["Architecture"],
            source=(headers["Source"] or name).split(" ")[0],
            files=_digest(_listed(layout, name, headers["Architecture"])),
            requires=tuple(("deb", each) for each in needs[name]),
        )
        for name, headers in installed.items()
    ]


def _listed(layout: Layout, name: str, architecture: str) -> Iterator[File]:
    """Yield the files of a Debian package that are in the image; on a merged /usr, where they really are."""
    for stem in (name, f"{name}:{architecture}"):
        listing = layout.files.get(f"/var/lib/dpkg/info/{stem}.list")
        for path in (listing.text or "").splitlines() if listing else ():
            for real in (path, f"/usr{path}"):
                if real in layout.files:
                    yield layout.files[real]
                    break


def _cpython(layout: Layout) -> Iterator[Package]:
    """Yield the CPython that was built into /usr/local, where upstream's image has it and dpkg knows nothing of it."""
    library = re.compile(rf"{_PREFIX}/lib/python(3\.\d+)/os\.py$")
    minor = next((match[1] for path in layout.files if (match := library.match(path))), None)
    if minor is None:
        return
    header = layout.files.get(f"{_PREFIX}/include/python{minor}/patchlevel.h")
    written = re.search(r'#define PY_VERSION\s+"([^"]+)"', (header.text if header else None) or "")
    said = [
        each
        for each in layout.config.get("config", {}).get("Env") or ()
        if each.startswith("PYTHON_VERSION=")
    ]
    version = written[1] if written else said[0].partition("=")[2] if said else minor
    own = re.compile(
        rf"{_PREFIX}/(lib/python{re.escape(minor)}/(?!site-packages/)|lib/libpython|bin/(python|pydoc|idle|2to3))"
    )
    yield Package(
        "generic",
        CPYTHON,
        version,
        license="PSF-2.0",
        files=_digest(
            file for path, file in layout.files.items() if own.match(path) and not path.endswith(".pyc")
        ),
    )


def _openssl(layout: Layout) -> Iterator[Package]:
    """Yield each OpenSSL that a wheel brings, as a library beside it or linked in, with the files that carry it."""
    bundled: dict[str, list[File]] = {}
    for path, file in layout.files.items():
        if file.openssl and re.search(r"/(site|dist)-packages/", path):
            bundled.setdefault(file.openssl, []).append(file)
    for version, files in bundled.items():
        yield Package(
            "generic",
            "openssl",
            version,
            license="Apache-2.0" if version >= "3" else "OpenSSL",
            files=_digest(files),
        )


def _one_line(text: str) -> str:
    first = text.strip().splitlines()[0].strip() if text.strip() else ""
    return first if len(first) <= 80 else ""


def _system(layout: Layout) -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        if (file := layout.files.get(path)) and file.text:
            found = re.search(r'^VERSION_ID="?([\d.]+)"?', file.text, re.MULTILINE)
            return found[1] if found else ""
    return ""
