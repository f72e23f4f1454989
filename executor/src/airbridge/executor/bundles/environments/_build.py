"""Child process of `build_process`: ``python -m airbridge.executor.bundles.environments._build SCRATCH PARENT``, which does not outlive PARENT.

Confined: it reads Python, the libraries and the platform's packages, writes the scratch directory, and has the network, for the package index. Nothing
of what it installs is imported. Imports no Airflow.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from packaging.utils import canonicalize_name

from airbridge.core.code import environment
from airbridge.core.code.snapshot import pack
from airbridge.core.exceptions import BundleError, EnvironmentRefused, ParseFailure
from airbridge.core.sandbox import confinement, hardening
from airbridge.executor.bundles.environments import base_wheels, installed_tree, uv
from airbridge.executor.bundles.environments.job import ARCHIVES, FILES, RESULT, Job
from airbridge.executor.bundles.environments.requirements import PROJECT_LOCK, Line, parse

_PLATFORM: Final = "{machine}-manylinux_2_28"
_EXPORTED: Final = (
    "--frozen",
    "--offline",
    "--no-dev",
    "--no-emit-workspace",
    "--format",
    "requirements-txt",
    "--no-header",
)


def main(scratch: Path) -> None:
    """Lock and build; write the result, or why there is none."""
    job = Job.read(scratch)
    confinement.enter(map(Path, job.readable), scratch, required=job.required, installs=True)
    try:
        result = build(job, scratch)
    except EnvironmentRefused as error:
        result = {"failures": [vars(each) for each in error.failures], "transient": error.transient}
    except BundleError as error:
        failure = ParseFailure(job.main, None, str(error))
        result = {"failures": [vars(failure)], "transient": error.transient}
    (scratch / RESULT).write_text(json.dumps(result))


def build(job: Job, scratch: Path) -> dict[str, Any]:
    """Return the locks by machine, the packages and the archives. Raises `BundleError`."""
    lines = _requirements(job, scratch / FILES)
    _check_against_platform(job, lines)
    base_wheels.write(scratch / "base", job.base)
    (scratch / ARCHIVES).mkdir()
    locks, packages, builds = {}, {}, []
    for machine in job.machines:
        pins = _lock(job, lines, machine, scratch)
        locks[machine] = _text(pins)
        packages.update({pin.name: _version(pin) for pin in pins})
        if pins:
            builds.append(_install(job, locks[machine], machine, scratch))
    return {"locks": locks, "packages": packages, "builds": builds}


def _requirements(job: Job, files: Path) -> tuple[Line, ...]:
    if job.main == PROJECT_LOCK:
        try:
            text = uv.run(["export", *_EXPORTED], files)
        except uv.UvFailed as error:
            raise BundleError(f"cannot be read: {error}") from error
    else:
        text = (files / job.main).read_text()
    return parse(job.main, text)


def _check_against_platform(job: Job, lines: Iterable[Line]) -> None:
    """Refuse requirements that exclude the platform's version: named here, with their line, before the resolver sees them."""
    failures = []
    for line in lines:
        version = job.constraints.get(line.name)
        marker = line.requirement.marker
        applies = marker is None or marker.evaluate({"extra": ""})
        if version and applies and not line.requirement.specifier.contains(version, prereleases=True):
            error = f"{str(line.requirement)!r} conflicts with {line.name}=={version}, which the platform runs Airflow with: allow that version"
            number = None if job.main == PROJECT_LOCK else line.number
            failures.append(ParseFailure(job.main, number, error))
    if failures:
        raise EnvironmentRefused(failures)


def _lock(job: Job, lines: tuple[Line, ...], machine: str, scratch: Path) -> tuple[Line, ...]:
    """Return each package of the environment, as one version with hashes; without those that workers have."""
    wanted, constraints = scratch / "wanted.txt", scratch / "constraints.txt"
    wanted.write_text("".join(f"{line.requirement}\n" for line in lines))
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in job.constraints.items()))
    command = [
        *("pip", "compile", str(wanted), "--constraint", str(constraints), *_common(job, machine)),
        *("--generate-hashes", "--no-header", "--no-annotate", "--quiet"),
    ]
    try:
        pins = parse(job.main, uv.run(command, scratch))
    except uv.UvFailed as error:
        raise BundleError(f"cannot be locked: {_explained(error, job)}", transient=error.transient) from error
    base = {str(canonicalize_name(name)) for name in job.base}
    return _with_own_hashes(job, lines, [pin for pin in pins if pin.name not in base])


def _explained(error: uv.UvFailed, job: Job) -> str:
    """Return uv's error, and what of it is the platform's."""
    text = str(error)
    named = sorted(
        f"{name}=={version}" for name, version in job.constraints.items() if f"{name}=={version}" in text
    )
    if not named:
        return text
    return f"{text} ({', '.join(named)} is what the platform runs Airflow with, and cannot be changed by a bundle)"


def _with_own_hashes(job: Job, lines: Iterable[Line], pins: list[Line]) -> tuple[Line, ...]:
    """Return the pins with the bundle's own hashes, where it has any: then every package must have some."""
    own: dict[str, tuple[str, ...]] = {}
    for line in lines:
        own[line.name] = (*own.get(line.name, ()), *line.hashes)
    if not any(own.values()):
        return tuple(pins)
    if bare := [pin for pin in pins if not own.get(pin.name)]:
        failures = [
            ParseFailure(
                job.main,
                None,
                f"{pin.requirement} has no hash, though others have: add it with --hash=sha256:...",
            )
            for pin in bare
        ]
        raise EnvironmentRefused(failures)
    return tuple(Line(pin.number, pin.requirement, own[pin.name]) for pin in pins)


def _install(job: Job, lock: str, machine: str, scratch: Path) -> dict[str, Any]:
    """Install a lock into a directory and archive it; return the build."""
    target, locked = scratch / f"target-{machine}", scratch / f"{machine}.lock"
    locked.write_text(lock)
    command = [
        *("pip", "install", "--target", str(target), "--no-deps", "--require-hashes", "-r", str(locked)),
        *("--link-mode", "copy", "--no-compile-bytecode", "--quiet", *_common(job, machine)),
    ]
    try:
        uv.run(command, scratch)
    except uv.UvFailed as error:
        raise BundleError(f"cannot be installed: {error}", transient=error.transient) from error
    size = installed_tree.tidy(target)
    if size > job.max_bytes:
        mib = 1024 * 1024
        raise BundleError(
            f"the environment has {size / mib:.1f} MiB; [airbridge] package_max_mb allows {job.max_bytes / mib:g}"
        )
    archive = pack(target, environment.LIMITS)
    (scratch / ARCHIVES / archive.version).write_bytes(archive.compressed())
    return {"python": job.python, "machine": machine, "version": archive.version, "bytes": size}


def _common(job: Job, machine: str) -> list[str]:
    wheels = [] if job.sdists else ["--only-binary", ":all:"]
    foreign = (
        [] if machine == platform.machine() else ["--python-platform", _PLATFORM.format(machine=machine)]
    )
    # An option, because uv has no variable for it: a URL may hold credentials, and is not an option for that reason.
    index = [] if job.has_index else ["--no-index"]
    return ["--python", sys.executable, *index, *wheels, *foreign]


def _version(pin: Line) -> str:
    return next(iter(pin.requirement.specifier)).version


def _text(pins: Iterable[Line]) -> str:
    lines = [
        " ".join([str(pin.requirement), *(f"--hash={each}" for each in sorted(pin.hashes))]) for pin in pins
    ]
    return "".join(f"{line}\n" for line in sorted(lines))


if __name__ == "__main__":
    hardening.end_with_parent(int(sys.argv[2]))
    main(Path(sys.argv[1]))
