"""Offline checks of sources and dependencies: ``python ci/scripts/security.py BANDIT``.

bandit's findings, the lock's hashes and the licences of installed packages, each compared with ci/security.toml: a finding without an
exception fails, and so does an unused exception.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("core/src", "executor/src", "control_plane/src", "edge_worker/src", "ci/src", "infra/src")


def bandit(program: str, rules: dict[str, Any]) -> Iterator[str]:
    """Findings of bandit that are not excepted, and exceptions without a finding."""
    skipped = ",".join(rules["skip"])
    command = [program, "--quiet", "--format", "json", "--skip", skipped, "--recursive", *SOURCES]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    report = json.loads(ran.stdout)
    yield from (f"bandit cannot read {error['filename']}: {error['reason']}" for error in report["errors"])
    found: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], list[str]] = {}
    for result in report["results"]:
        key = (result["test_id"], result["filename"].removeprefix("./"))
        found[key] += 1
        where.setdefault(key, []).append(f"{key[1]}:{result['line_number']}: {key[0]} {result['issue_text']}")
    allowed = {(each["test"], each["path"]): each["count"] for each in rules["except"]}
    for key in sorted(found.keys() | allowed.keys()):
        if found[key] > allowed.get(key, 0):
            yield from where[key]
        elif found[key] < allowed[key]:
            yield f"ci/security.toml excepts {allowed[key]} of {key[0]} in {key[1]}, where there are {found[key]}"


def lock() -> Iterator[str]:
    """Packages of the lock that come from elsewhere than PyPI, or whose files have no SHA-256."""
    for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]:
        source = package["source"]
        if "editable" in source or "virtual" in source:
            continue
        if source.get("registry") != "https://pypi.org/simple":
            yield f"{package['name']} comes from {source}, not from PyPI"
        files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
        if not files or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", file.get("hash", "")) for file in files):
            yield f"{package['name']} has a file without a SHA-256 in uv.lock"


def licences(rules: dict[str, Any]) -> Iterator[str]:
    """Installed packages whose licence is not one of those that are allowed."""
    allowed = re.compile("|".join(rules["allow"]), re.IGNORECASE)
    for package in distributions():
        name = (package.name or "").lower()
        said = licence(package)
        if not name.startswith("airbridge") and name not in rules["except"] and not allowed.search(said):
            yield f"{name}: licence {said[:80]!r} is not among those allowed in ci/security.toml"


def licence(package: Distribution) -> str:
    """Return the licence that a package declares."""
    meta = package.metadata
    classified = [value for value in meta.get_all("Classifier") or [] if value.startswith("License ::")]
    expression, free_text = ((meta.get_all(field) or [""])[0] for field in ("License-Expression", "License"))
    return " ".join([expression, *classified, free_text[:200]]).strip()


def main(program: str) -> int:
    """Print the findings; return the exit code."""
    rules = tomllib.loads((ROOT / "ci" / "security.toml").read_text())
    wrong = [*bandit(program, rules["bandit"]), *lock(), *licences(rules["licences"])]
    for each in wrong:
        print(each, file=sys.stderr)
    print(
        f"{len(wrong)} problems" if wrong else "sources, hashes and licences are as they should be",
        file=sys.stderr,
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
