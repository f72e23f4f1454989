"""Requirements of a bundle: the file that names them, and what a line of it may be.

A line is a name with extras, versions and a marker, and hashes. Whatever would have the installer read a path, a URL or a repository, or take an
option, is refused: where packages come from is the operator's decision.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from airbridge.core.exceptions import EnvironmentRefused, ParseFailure
from airbridge.executor.bundles.source import redact

REQUIREMENTS: Final = "requirements.txt"
PROJECT: Final = "pyproject.toml"
PROJECT_LOCK: Final = "uv.lock"

_FILE_BYTES: Final = 4 * 1024 * 1024
_HASH: Final = re.compile(r"\s--hash[=\s](\S+)")
_HASH_FORM: Final = re.compile(r"sha(?:256|384|512):[0-9a-f]{64,128}")
_COMMENT: Final = re.compile(r"(^|\s)#.*$")
_ARCHIVES: Final = (".whl", ".zip", ".gz", ".bz2", ".tgz", ".egg")
_SHOWN: Final = 200


@dataclass(frozen=True)
class RequirementFiles:
    """Files of a bundle's root that name its packages; `main` is the one that errors are shown for."""

    main: str
    contents: Mapping[str, bytes]


@dataclass(frozen=True)
class Line:
    """One requirement, with the number of the line that it begins on."""

    number: int
    requirement: Requirement
    hashes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The package's normalised name."""
        return str(canonicalize_name(self.requirement.name))


def find(root: Path) -> RequirementFiles | None:
    """Return the files that name a bundle's packages; None if there are none. Raises `EnvironmentRefused`."""
    plain = _is_there(root, REQUIREMENTS)
    project = _is_there(root, PROJECT_LOCK) and _is_there(root, PROJECT)
    if plain and project:
        raise _refused(
            PROJECT_LOCK, None, f"the bundle has {REQUIREMENTS} too: keep the one that names its packages"
        )
    if plain:
        return RequirementFiles(REQUIREMENTS, {REQUIREMENTS: _read(root, REQUIREMENTS)})
    if project:
        return RequirementFiles(PROJECT_LOCK, {name: _read(root, name) for name in (PROJECT, PROJECT_LOCK)})
    return None


def parse(file: str, text: str) -> tuple[Line, ...]:
    """Return the requirements of a file's text. Raises `EnvironmentRefused` with a failure for each line that cannot be one."""
    lines, failures = [], []
    for number, content in _logical_lines(text):
        found = _parse_line(file, number, content)
        if isinstance(found, ParseFailure):
            failures.append(found)
        else:
            lines.append(found)
    if failures:
        raise EnvironmentRefused(failures)
    return tuple(lines)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines that are not empty, without comments, continued ones joined."""
    joined, begun = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        begun = begun if joined else number
        joined += _COMMENT.sub("", raw).rstrip()
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        if joined.strip():
            yield begun, joined.strip()
        joined = ""
    if joined.strip():
        yield begun, joined.strip()


def _parse_line(file: str, number: int, content: str) -> Line | ParseFailure:
    hashes = tuple(_HASH.findall(content))
    bare = _HASH.sub("", content).strip()
    shown = redact(bare)[:_SHOWN]
    if bare.startswith("-"):
        error = f"{shown!r} is an option: only requirements can be here; [airbridge] package_index names the index"
        return ParseFailure(file, number, error)
    if wrong := [each for each in hashes if not _HASH_FORM.fullmatch(each)]:
        return ParseFailure(
            file, number, f"{wrong[0][:_SHOWN]!r} is not a hash: sha256: and 64 hexadecimal digits are"
        )
    try:
        requirement = Requirement(bare)
    except InvalidRequirement as error:
        why = str(error).splitlines()[0]
        return ParseFailure(
            file,
            number,
            f"{shown!r} is not a requirement such as 'pandas==2.2.3' ({why}): paths and files are refused",
        )
    if requirement.url or requirement.name.lower().endswith(_ARCHIVES):
        named = "a URL" if requirement.url else "a file"
        return ParseFailure(
            file,
            number,
            f"{shown!r} names {named}: only packages of the index can be required; name the version instead",
        )
    return Line(number, requirement, hashes)


def _is_there(root: Path, name: str) -> bool:
    """Return whether a file is part of the tree. A link that leaves it is refused, or left out, when the tree is packed."""
    path = root / name
    return path.is_file() and path.resolve().is_relative_to(root.resolve())


def _read(root: Path, name: str) -> bytes:
    content = (root / name).read_bytes()
    if len(content) > _FILE_BYTES:
        raise _refused(name, None, f"has {len(content)} bytes; at most {_FILE_BYTES} are read")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise _refused(name, None, "is not UTF-8: save it as UTF-8") from error
    return content


def _refused(file: str, line: int | None, error: str) -> EnvironmentRefused:
    return EnvironmentRefused([ParseFailure(file, line, error)])
