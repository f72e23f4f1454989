"""Environments: the Python packages of a bundle, an archive named by the digest of its content.

A snapshot that has one contains `MANIFEST`, which names the archive of each Python version and machine, so the snapshot's own digest (the
bundle version) covers code and packages. An archive is a snapshot with larger bounds, and is packed, verified and unpacked as
one. Free of Airflow, so that the edge worker may use it.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from airbridge.core.code.snapshot import RESERVED, Limits, hex_of, unpack
from airbridge.core.exceptions import BundleError

MANIFEST: Final = f"{RESERVED}/environment.json"
LOCK: Final = f"{RESERVED}/requirements.lock"

# What a worker unpacks at most. The control plane has a setting below it: it packs in memory.
LIMITS: Final = Limits(files=100_000, file_bytes=512 * 1024 * 1024, total_bytes=1024 * 1024 * 1024)

MANIFEST_BYTES: Final = 1024 * 1024
_COMPILE_SECONDS: Final = 300.0


@dataclass(frozen=True, order=True)
class Build:
    """Archive for one Python version (``3.12``) and machine (``x86_64``); `bytes` is the size of its files."""

    python: str
    machine: str
    version: str
    bytes: int


@dataclass(frozen=True)
class Environment:
    """Content of a manifest. `inputs` is the digest of all that decides what is locked and built."""

    inputs: str
    builds: tuple[Build, ...]
    packages: Mapping[str, str]

    def encoded(self) -> bytes:
        """Return the manifest file's content; equal environments have equal bytes."""
        content = {
            "v": 1,
            "inputs": self.inputs,
            "builds": [vars(build) for build in sorted(self.builds)],
            "packages": dict(self.packages),
        }
        return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Read a manifest file's content. Raises `BundleError`."""
        try:
            data = json.loads(text)
            if data["v"] != 1:
                raise BundleError(
                    f"environment manifest version {data['v']!r} is unknown: upgrade this process"
                )
            builds = tuple(_build(each) for each in data["builds"])
            packages = {str(name): str(version) for name, version in data["packages"].items()}
            return cls(str(data["inputs"]), builds, packages)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise BundleError(f"{MANIFEST} is not an environment manifest: {error!r}") from error

    def version_for(self, python: str, machine: str) -> str:
        """Return the archive for a platform. Raises `BundleError` if it was not built for it."""
        for build in self.builds:
            if (build.python, build.machine) == (python, machine):
                return build.version
        known = ", ".join(f"Python {each.python} on {each.machine}" for each in sorted(self.builds))
        pythons = sorted({each.python for each in self.builds})
        if pythons and python not in pythons:
            remedy = (
                "packages are built for the control plane's Python alone: "
                f"run the worker under Python {' or '.join(pythons)}"
            )
        else:
            remedy = "name the machine in [airbridge] package_machines and publish the bundle again"
        raise BundleError(
            f"the bundle's environment was not built for Python {python} on {machine}, but for {known}: {remedy}"
        )


def _build(data: Mapping[str, Any]) -> Build:
    build = Build(str(data["python"]), str(data["machine"]), str(data["version"]), int(data["bytes"]))
    hex_of(build.version)
    return build


def of_tree(root: Path) -> Environment | None:
    """Return the environment that an unpacked snapshot names; None if it has none. Raises `BundleError`."""
    manifest = root / MANIFEST
    try:
        if manifest.stat().st_size > MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST} has more than {MANIFEST_BYTES} bytes")
        return Environment.decode(manifest.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def version_of(root: Path) -> str | None:
    """Return the archive that an unpacked snapshot needs on this machine; None if it needs none. Raises `BundleError`."""
    found = of_tree(root)
    return None if found is None else found.version_for(*this_platform())


def this_platform() -> tuple[str, str]:
    """Return this process's Python version and machine, as builds name them."""
    return f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine()


def activate(root: str) -> None:
    """Make an unpacked environment importable in this process, after everything else: it replaces no module of the platform.

    Only for processes that run DAG authors' code in a sandbox. No ``.pth`` file is read. Providers in it become part of the
    `airflow` namespace, whose path was computed when Airflow was imported.
    """
    if root in sys.path:
        return
    sys.path.append(root)
    airflow, within = sys.modules.get("airflow"), str(Path(root, "airflow"))
    if airflow is not None and Path(within).is_dir():
        airflow.__path__ = [*airflow.__path__, within]


def beside(snapshot: Path) -> Path | None:
    """Return the unpacked environment of an unpacked snapshot, if it has one, where both lie in one directory by their versions."""
    version = version_of(snapshot)
    return None if version is None else snapshot.with_name(version)


def unpack_environment(
    archive: Iterable[bytes],
    version: str,
    destination: Path,
    *,
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Unpack an environment as `unpack` does, with its modules compiled before `finish`: nothing may be written to it later."""

    def compiled(tree: Path) -> None:
        _compile(tree, destination)
        finish(tree)

    unpack(archive, version, destination, LIMITS, finish=compiled)


def _compile(tree: Path, destination: Path) -> None:
    # In a process of its own, because sources are untrusted. By content, not by time: the tree never changes.
    command = [
        *(sys.executable, "-I", "-m", "compileall", "-q", "-q", "-j", "0"),
        *("--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", str(destination), str(tree)),
    ]
    try:
        subprocess.run(  # noqa: S603 - the standard library's module under our own interpreter
            command, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=_COMPILE_SECONDS, check=False,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, OSError):
        return  # modules that are not compiled are only slower to import
