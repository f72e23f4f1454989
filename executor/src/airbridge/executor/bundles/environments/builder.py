"""Environments of a bundle's source: found again by what decides them, or locked and built in a child process.

An environment is decided by its inputs: the requirement files, the platform's packages, and the platforms that it is built for. While
these stay equal, the current version's environment is kept, lock and all, and the package index is not asked. What this machine has built is kept
too, so going back to earlier requirements needs no index either.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from airbridge.core.code import environment
from airbridge.core.code.environment import Build, Environment
from airbridge.core.exceptions import BundleError, EnvironmentRefused, ParseFailure
from airbridge.core.sandbox import trees
from airbridge.executor.bundle_settings import PackageSettings
from airbridge.executor.bundles.environments import requirements
from airbridge.executor.bundles.environments.build_process import BuildProcess
from airbridge.executor.bundles.environments.inputs import Inputs
from airbridge.executor.bundles.environments.job import ARCHIVES, FILES, RESULT, Job
from airbridge.executor.bundles.environments.locks import as_text
from airbridge.executor.bundles.environments.requirements import RequirementFiles

log = structlog.get_logger(__name__)

# Environments that one bundle keeps on this machine.
_KEPT: Final = 5
_LEFT_SECONDS: Final = 3600.0
_RESULT_BYTES: Final = 16 * 1024 * 1024

_INHERITED: Final = (
    *("PATH", "LANG", "LC_ALL", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV"),
    *(
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ),
)
_FIXED: Final = {
    "UV_NO_CONFIG": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_HTTP_TIMEOUT": "20",
    "UV_HTTP_RETRIES": "2",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True)
class Prepared:
    """Additions of publishing a source: files of the snapshot, and archives by version that may not be in the regions yet."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    archives: Mapping[str, Path] = field(default_factory=dict)
    inputs: Inputs | None = None


class EnvironmentPending(BundleError):  # noqa: N818 - what happens to the environment
    """The packages that a bundle names are still being locked or built, and the build goes on."""

    def __init__(self, main: str) -> None:
        building = (
            "the packages are being locked and built; what was published before stays current until then"
        )
        self.failure = ParseFailure(main, None, building)
        super().__init__(str(self.failure), transient=True)


@dataclass(frozen=True)
class Order:
    """Environment that has to be built."""

    files: RequirementFiles
    inputs: Inputs


class EnvironmentBuilder:
    """Environments of one bundle, kept under `cache`. `parent` is the environment of this process."""

    def __init__(self, cache: Path, settings: PackageSettings, parent: Mapping[str, str]) -> None:
        self._cache = cache
        self._settings = settings
        self._parent = parent
        self._running: BuildProcess | None = None

    def prepare(
        self,
        root: Path,
        current: Callable[[], Path | None] = lambda: None,
        *,
        pushed: Callable[[str], Mapping[str, bytes] | None] = lambda _: None,
        patience: float | None = None,
    ) -> Prepared:
        """Return what a source's environment adds to its snapshot. `current` gives the version before, unpacked.

        `pushed` gives the files of an environment that was built elsewhere, by the digest of its inputs; it goes before all others.
        A build that is older than `patience` seconds goes on without being waited for; call again with equal requirements to
        have its result. Other requirements end it, and so does an environment that is there without it. Raises `EnvironmentPending` then, and `EnvironmentRefused` if the packages cannot be
        installed.
        """
        try:
            found = self.find(root, current, pushed)
        except EnvironmentRefused:
            self.close()
            raise
        if isinstance(found, Order):
            return self.build(found, patience)
        self.close()
        return found

    def find(
        self,
        root: Path,
        current: Callable[[], Path | None],
        pushed: Callable[[str], Mapping[str, bytes] | None],
    ) -> Prepared | Order:
        """Return what is here of a source's environment already, or what `build` has to make. The arguments are those of `prepare`."""
        files = requirements.find(root) if self._settings.enabled else None
        if files is None:
            return Prepared()
        inputs = Inputs.here(files, self._settings)
        if (found := pushed(inputs.digest)) is not None:
            return Prepared(found, inputs=inputs)
        if (self._cache / inputs.digest / "environment.json").is_file():
            return self._taken(inputs)
        if (found := _same(current(), inputs.digest)) is not None:
            return Prepared(found, inputs=inputs)
        return Order(files, inputs)

    def build(self, order: Order, patience: float | None = None) -> Prepared:
        """Lock and build an environment, or go on with it. Raises as `prepare`."""
        self._build(self._job(order.files, order.inputs), order, patience)
        return self._taken(order.inputs)

    def _taken(self, inputs: Inputs) -> Prepared:
        """Return an environment of the cache, as the last one that was used."""
        kept = self._cache / inputs.digest
        os.utime(kept)
        return _prepared(kept, inputs)

    def close(self) -> None:
        """End a build that goes on."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _job(self, files: RequirementFiles, inputs: Inputs) -> Job:
        settings = self._settings
        return Job(
            main=files.main,
            constraints=inputs.constraints,
            base=inputs.base,
            python=inputs.python,
            machines=inputs.machines,
            sdists=inputs.sdists,
            max_bytes=min(int(settings.max_mb * 1024 * 1024), environment.LIMITS.total_bytes),
            has_index=settings.index != "none",
            readable=tuple(self._readable()),
            required=settings.required,
        )

    def _readable(self) -> list[str]:
        links = self._settings.find_links
        local = [links.removeprefix("file://")] if links and links.startswith(("/", "file://")) else []
        index = (
            [self._settings.index.removeprefix("file://")]
            if self._settings.index.startswith("file://")
            else []
        )
        netrc = [str(self._settings.netrc)] if self._settings.netrc else []
        certificates = [
            self._parent[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in self._parent
        ]
        return [*local, *index, *netrc, *certificates]

    def _environment(self, scratch: Path) -> dict[str, str]:
        """Return the child's environment: no secret of this process, and the index's credentials in a file, if any."""
        settings = self._settings
        found = {name: self._parent[name] for name in _INHERITED if name in self._parent}
        links = [str(scratch / "base"), *([settings.find_links] if settings.find_links else [])]
        index = {} if settings.index == "none" else {"UV_DEFAULT_INDEX": settings.index}
        netrc = {"NETRC": str(settings.netrc)} if settings.netrc else {}
        cache = {"UV_CACHE_DIR": str(scratch / "cache"), "HOME": str(scratch)}
        return {**found, **_FIXED, **index, **netrc, **cache, "UV_FIND_LINKS": ",".join(links)}

    def _build(self, job: Job, order: Order, patience: float | None) -> None:
        files, inputs = order.files, order.inputs.digest
        running = self._started(job, files, inputs)
        try:
            ending = running.wait(patience)
        except BaseException:
            self.close()
            raise
        if ending is None:
            raise EnvironmentPending(files.main)
        try:
            result = _result(running.scratch, files.main, ending)
            made = running.scratch / "made"
            built = _collect(result, running.scratch, made, inputs)
            with contextlib.suppress(OSError):  # another process was faster: equal inputs, so either will do
                made.rename(self._cache / inputs)
        finally:
            self.close()
        log.info(
            "environment.built",
            file=files.main,
            packages=dict(built.packages),
            archives=[build.version for build in built.builds],
            seconds=round(running.seconds, 1),
        )
        self._evict()

    def _started(self, job: Job, files: RequirementFiles, inputs: str) -> BuildProcess:
        """Return the build of these inputs, started now unless it goes on already."""
        if self._running is not None and self._running.inputs == inputs:
            return self._running
        self.close()
        log.info("environment.building", file=files.main, inputs=inputs[:12])
        self._cache.mkdir(parents=True, exist_ok=True)
        directory = trees.Scratch(".build-", self._cache)
        try:
            scratch = directory.path.resolve()
            _write_files(scratch / FILES, files)
            job.write(scratch)
            self._running = BuildProcess(directory, inputs, self._settings, self._environment(scratch))
        except BaseException:
            directory.remove()
            raise
        return self._running

    def _evict(self) -> None:
        kept = sorted(self._cache.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True)
        # What a build left that was killed with its parent.
        old = [
            path
            for path in self._cache.glob(".build-*")
            if time.time() - path.stat().st_mtime > _LEFT_SECONDS
        ]
        for path in (*kept[_KEPT:], *old):
            trees.discard(path)


def _same(current: Path | None, inputs: str) -> dict[str, bytes] | None:
    """Return the files of the current version's environment if it has these inputs."""
    if current is None:
        return None
    try:
        found = environment.of_tree(current)
        if found is None or found.inputs != inputs:
            return None
        return {name: (current / name).read_bytes() for name in (environment.MANIFEST, environment.LOCK)}
    except (BundleError, OSError):
        return None


def _prepared(kept: Path, inputs: Inputs) -> Prepared:
    """Return a kept environment; nothing if all of its packages are the platform's."""
    content = (kept / "environment.json").read_bytes()
    builds = Environment.decode(content).builds
    if not builds:
        return Prepared()
    files = {environment.MANIFEST: content, environment.LOCK: (kept / "requirements.lock").read_bytes()}
    archives = {build.version: kept / f"{build.version}.tar.gz" for build in builds}
    return Prepared(files, archives, inputs)


def _write_files(folder: Path, files: RequirementFiles) -> None:
    folder.mkdir()
    for name, content in files.contents.items():
        (folder / name).write_bytes(content)


def _result(scratch: Path, main: str, ending: str) -> dict[str, Any]:
    """Return the child's result. Raises `EnvironmentRefused`."""
    path = scratch / RESULT
    if ending or not path.is_file() or path.is_symlink() or path.stat().st_size > _RESULT_BYTES:
        error = ending or "the build left no result"
        raise EnvironmentRefused([ParseFailure(main, None, error)], transient=True)
    result: dict[str, Any] = json.loads(path.read_text())
    if failures := result.get("failures"):
        refused = [ParseFailure(str(each["file"]), each["line"], str(each["error"])) for each in failures]
        raise EnvironmentRefused(refused, transient=bool(result.get("transient")))
    return result


def _collect(result: Mapping[str, Any], scratch: Path, made: Path, inputs: str) -> Environment:
    """Gather what is kept of a build in `made`."""
    built = Environment(inputs, tuple(Build(**each) for each in result["builds"]), result["packages"])
    made.mkdir()
    (made / "environment.json").write_bytes(built.encoded())
    (made / "requirements.lock").write_bytes(as_text(result["locks"]))
    for build in built.builds:
        archive = scratch / ARCHIVES / build.version
        if archive.is_symlink():
            raise BundleError(f"the archive {build.version} is a link")
        archive.rename(made / f"{build.version}.tar.gz")
    return built
