"""AirBridge's DAG bundle: DAG code, published to every region by the digest of its content.

The dag-processor refreshes it. When its source's content has changed and parses, a new snapshot is published and
becomes current; `path` is then that snapshot, unpacked, so what is parsed is what the version names. A refused
snapshot (a file does not parse, or cannot be in a snapshot) leaves the one before it current. Every failure of the source
and of publishing stands among the UI's import errors until it is gone.

Several dag-processors may run. A source's change is published by whichever sees it first; the others find it
current already. Where their folders differ (a rolling deployment), none overrules another without a change of its own:
each remembers, across restarts, what it has acted on, and adopts what is current otherwise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog
from airflow.dag_processing.bundles.base import BaseDagBundle, get_bundle_tracking_file
from airflow.exceptions import AirflowException

from airbridge.core.catalogue import Catalogue
from airbridge.core.code import environment
from airbridge.core.code.snapshot import Snapshot, is_version, pack, unpack
from airbridge.core.code.snapshot_cache import SnapshotCache
from airbridge.core.exceptions import (
    AirBridgeError,
    BundleError,
    ConfigurationError,
    EnvironmentRefused,
    ParseFailure,
    PreconditionFailed,
)
from airbridge.executor import bundle_settings, settings
from airbridge.executor._airflow import dags_of_other_bundles, recorded_versions
from airbridge.executor.bundles import parse_environment
from airbridge.executor.bundles.check import TreeCheck, placement_check
from airbridge.executor.bundles.environments.builder import (
    EnvironmentBuilder,
    EnvironmentPending,
    Prepared,
)
from airbridge.executor.bundles.import_errors import ImportErrors
from airbridge.executor.bundles.registry import ledger_registry
from airbridge.executor.bundles.source import PushSource, SourceState, source_of
from airbridge.executor.bundles.store import BundleStore, Pointer
from airbridge.executor.placement.check import PlacementCheck

log = structlog.get_logger(__name__)

# A refused snapshot is checked again after this long: the cause may have been the machine (a timeout, a
# missing package).
CHECK_AGAIN_SECONDS = 300.0
# The same of one whose package index could not be reached.
BUILD_AGAIN_SECONDS = 60.0
# Meanwhile the dag-processor does nothing else; a build that takes longer goes on beside it.
BUILD_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class _Refusal:
    failures: tuple[ParseFailure, ...]
    until: float


class AirBridgeBundle(BaseDagBundle):  # type: ignore[misc]  # Airflow publishes no types
    """A versioned bundle; its version is ``sha256:<hex>``.

    :param source: where the code comes from, see `airbridge.executor.bundles.source`
    :param refuse_broken: whether a snapshot is refused as a whole for a file that does not parse or cannot be part of it.
        False publishes all that can be: Airflow shows the import errors of the broken files, as with its own bundles, and
        AirBridge those of the files left out.
    :param parse_seconds: how long checking a snapshot may take; a slower one is refused
    :param max_versions: how many unpacked versions are kept on this machine
    :param store: the regions' buckets; by default those of ``[airbridge] regions_file``
    """

    supports_versioning = True

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        refuse_broken: bool = True,
        parse_seconds: float = 120.0,
        max_versions: int = 20,
        store: BundleStore | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source_of(self.name, source)
        self._refuse_broken = refuse_broken
        self._parse_seconds = parse_seconds
        self._given_store = store
        self._cache = SnapshotCache(self.versions_dir, max_versions, in_use=self._in_use)
        self._shown: str | None = None
        self._mark: str | None = None
        self._refused: _Refusal | None = None
        self._prepared = Prepared()
        self._pending = False
        self._left_out: tuple[ParseFailure, ...] = ()
        self._errors = ImportErrors(self.name)
        # The version that the last refresh was to show, if it could.
        self._wanted: str | None = None

    # --- What Airflow calls ---------------------------------------------------------------------------

    def initialize(self) -> None:
        """Prepare `path`: the requested version, or else the current one. Raises `AirflowException`."""
        try:
            if self.version is not None:
                self._unpack(self.version)
            elif not self._show_current():
                self.refresh()
        except (AirBridgeError, OSError) as error:
            if self.version is None:
                self._errors.show([self._failure(error)])
            # the dag-processor lives on only if it is this exception
            raise AirflowException(str(error)) from error
        super().initialize()

    def refresh(self) -> None:
        """Publish the source's content if it has changed and parses; then show what is current.

        With the home region out of reach, what was shown last stays. Raises `BundleError` if there is nothing to show.
        """
        if self.version is not None:
            raise AirflowException(
                f"bundle {self.name!r}: version {self.version} never changes and has no refresh"
            )
        with self.lock():
            before = self._shown
            failures: list[ParseFailure] = []
            try:
                self._refresh(failures)
            except (AirBridgeError, OSError) as error:
                failures.append(self._failure(error))
                log.warning("bundle.refresh_failed", bundle=self.name, version=self._shown, error=str(error))
                if self._shown is None or isinstance(error, ConfigurationError):
                    raise
            finally:
                self._errors.show(failures, changed=self._shown != before)

    @property
    def refresh_interval(self) -> int:
        """Seconds between refreshes; 0 while one is due: another version has become current, or the last has to be repeated.

        Airflow reads it at each of its checks, after which it refreshes or not: the versions are compared then.
        """
        due = self._pending or self._errors.may_be_dropped or self._is_behind()
        return 0 if due else self._interval

    @refresh_interval.setter
    def refresh_interval(self, seconds: int) -> None:
        self._interval = seconds

    def _is_behind(self) -> bool:
        """Return whether another version is current than the one of the last refresh; False if that cannot be known."""
        if self.version is not None or not self.is_initialized:
            return False
        try:
            return self._store.pointer().version != self._wanted
        except AirBridgeError:
            return False

    def get_current_version(self) -> str | None:
        """The version that `path` shows; None before the first was published."""
        return self.version or self._shown

    @property
    def path(self) -> Path:
        """The unpacked snapshot; an empty directory before the first was published, and for a version that is no digest.

        Airflow's dag-processor reads the path of a callback's bundle without initialising it (`_add_callback_to_queue`), outside any
        error handling: the snapshot is fetched then, and a failure only logged. A callback without a version has the one that this machine
        showed last. Runs that were created under another kind of bundle have versions that are no digests.
        """
        version = self.get_current_version()
        try:
            if version is None and not self.is_initialized:
                version = self._read("SHOWN")
            if version is not None:
                return self._unpack(version)
        except (AirBridgeError, OSError) as error:
            log.warning("bundle.fetch_failed", bundle=self.name, version=version, error=str(error))
        if version is None or not is_version(version):
            return self._empty()
        return self._cache.path(version)

    def _empty(self) -> Path:
        empty: Path = self.base_dir / "empty"
        with suppress(OSError):  # a full disk; Airflow finds no files in a directory that is not there
            empty.mkdir(parents=True, exist_ok=True)
        return empty

    # --- Publishing -------------------------------------------------------------------------------------

    def _refresh(self, failures: list[ParseFailure]) -> None:
        """Publish and show; append to `failures` what is not published, and why."""
        pointer = self._store.pointer()
        if pointer.version is None and self._adopt():
            pointer = self._store.pointer()
        self._pending, self._wanted = False, pointer.version
        try:
            version = self._offer(pointer)
            failures += (*(self._refused.failures if self._refused else ()), *self._left_out)
        except EnvironmentPending as pending:
            failures.append(pending.failure)
            version, self._mark, self._pending = pointer.version, None, True
        except (BundleError, OSError) as error:
            if pointer.version is None:
                raise
            log.warning("bundle.source_failed", bundle=self.name, error=str(error))
            failures.append(self._failure(error))
            version, self._mark = pointer.version, None
        self._show(version)
        self._store.supply(version, lambda: self._rebuild(version), environments=self._environments(version))

    def _adopt(self) -> bool:
        """Take over what Airflow's database recorded before snapshots were signed; False if that is nothing."""
        current, versions = recorded_versions(self.name)
        if current is None:
            return False
        self._store.adopt(current, versions)
        return True

    def _rebuild(self, version: str | None) -> bytes | None:
        """Make an archive from the snapshot that this machine has unpacked."""
        if version is None or not self._cache.path(version).is_dir():
            return None
        snapshot = pack(self._cache.path(version))
        return snapshot.compressed() if snapshot.version == version else None

    def _offer(self, pointer: Pointer) -> str | None:
        """Publish the source's content if it is news and parses; return the version that is current then."""
        if isinstance(self.source, PushSource):
            return pointer.version
        look = self.source.look(self._directory("source"))
        if self._unchanged(look, pointer):
            return pointer.version
        snapshot = self._pack(look, pointer)
        version = pointer.version
        if self._refused is None:
            if not self._is_news(snapshot, pointer):
                self._write("ACTED_ON", snapshot.version)
            elif self._parses(snapshot):
                version = self._publish(snapshot, pointer)
        # After a lost race the next refresh looks again: what the other published may be newer than this look.
        lost_race = self._refused is None and snapshot.version != self._read("ACTED_ON")
        self._mark = None if lost_race else look.mark
        return version

    def _pack(self, look: SourceState, pointer: Pointer) -> Snapshot:
        """Pack the source with its environment. Files that cannot be in a snapshot are left out, or the reason to refuse it.

        A snapshot whose packages cannot be installed is refused in any case: its tasks would fail.
        """
        faults: list[ParseFailure] = []
        self._refused, self._prepared = None, Prepared()
        try:
            self._prepared = self._builder.prepare(
                look.root,
                lambda: self._unpacked(pointer.version),
                pushed=self._store.pushed_environment,
                patience=BUILD_PATIENCE_SECONDS,
            )
        except EnvironmentRefused as error:
            again = BUILD_AGAIN_SECONDS if error.transient else CHECK_AGAIN_SECONDS
            self._refuse(error.failures, "of the source", again)
        snapshot = pack(look.root, left_out=faults, added=self._prepared.files)
        self._left_out = () if self._refuse_broken else tuple(faults)
        if faults and self._refuse_broken:
            self._refuse(faults, snapshot.version)
        for fault in self._left_out:
            log.error("bundle.left_out", bundle=self.name, version=snapshot.version, failure=str(fault))
        return snapshot

    def _refuse(
        self, failures: Iterable[ParseFailure], version: str, again: float = CHECK_AGAIN_SECONDS
    ) -> None:
        self._refused = _Refusal(tuple(failures), until=time.monotonic() + again)
        for failure in self._refused.failures:
            log.error("bundle.refused", bundle=self.name, version=version, failure=str(failure))

    def _unchanged(self, look: SourceState, pointer: Pointer) -> bool:
        if look.mark != self._mark:
            return False
        if self._refused is not None:
            return time.monotonic() < self._refused.until
        return pointer.version is not None

    def _is_news(self, snapshot: Snapshot, pointer: Pointer) -> bool:
        return pointer.version is None or snapshot.version not in {pointer.version, self._read("ACTED_ON")}

    def _parses(self, snapshot: Snapshot) -> bool:
        if not self._refuse_broken:
            return True
        tree = self._cache.get(
            snapshot.version, lambda path: unpack([snapshot.compressed()], snapshot.version, path)
        )
        packages = self._unpack_environment(tree)
        how = bundle_settings.load_parsing()
        check = TreeCheck(
            environment=parse_environment.of(os.environ, how.environment),
            timeout_seconds=self._parse_seconds,
            required=how.required,
            placement=self._placement,
            taken=dags_of_other_bundles,
        )
        failures = check(self.name, tree, packages).failures
        if failures:
            self._refuse(failures, snapshot.version)
        return not failures

    def _publish(self, snapshot: Snapshot, pointer: Pointer) -> str | None:
        try:
            self._store.publish(snapshot, self.source_actor, pointer, environments=self._prepared.archives)
        except PreconditionFailed:
            return self._store.pointer().version
        self._write("ACTED_ON", snapshot.version)
        return snapshot.version

    @property
    def source_actor(self) -> str:
        """Publisher, as recorded with each version."""
        return "push" if isinstance(self.source, PushSource) else self.source.actor

    def _failure(self, error: Exception) -> ParseFailure:
        """Return a failure of the whole source, by the source's name."""
        return ParseFailure(self.source_actor, None, str(error))

    # --- Showing ------------------------------------------------------------------------------------------

    def _show_current(self) -> bool:
        """Show the current version, or the last one that this machine showed if the store is unreachable; return False if there is none."""
        try:
            version = self._store.pointer().version
        except BundleError as error:
            version = self._read("SHOWN")
            if version is None or not self._cache.path(version).is_dir():
                raise
            log.warning("bundle.home_unreachable", bundle=self.name, version=version, error=str(error))
        self._show(version)
        return version is not None

    def _show(self, version: str | None) -> None:
        self._wanted = version
        if version is not None and version != self._shown:
            self._unpack(version)
            self._write("SHOWN", version)
        self._shown = version

    def _unpack(self, version: str) -> Path:
        tree = self._cache.get(version, lambda path: self._store.fetch(version, path))
        self._unpack_environment(tree)
        return tree

    def _unpack_environment(self, tree: Path) -> Path | None:
        """Return the environment of an unpacked snapshot, unpacked beside it; None if it has none."""
        version = environment.version_of(tree)
        if version is None:
            return None
        archive = self._prepared.archives.get(version)

        def fetch(path: Path) -> None:
            if archive is not None and archive.is_file():
                environment.unpack_environment([archive.read_bytes()], version, path)
            else:
                self._store.fetch_environment(version, path)

        return self._cache.get(version, fetch)

    def _unpacked(self, version: str | None) -> Path | None:
        """Return the current version, to take its environment over; None if it cannot be had now."""
        try:
            return (
                None
                if version is None
                else self._cache.get(version, lambda path: self._store.fetch(version, path))
            )
        except BundleError:
            return None

    def _environments(self, version: str | None) -> tuple[str, ...]:
        """Return the archives that a version needs in the regions, for any platform."""
        if version is None or not self._cache.path(version).is_dir():
            return ()
        found = environment.of_tree(self._cache.path(version))
        return () if found is None else tuple(build.version for build in found.builds)

    @cached_property
    def _builder(self) -> EnvironmentBuilder:
        return EnvironmentBuilder(
            self._directory("environments"), bundle_settings.load_packages(), os.environ
        )

    @cached_property
    def _store(self) -> BundleStore:
        if self._given_store is not None:
            return self._given_store
        loaded = settings.load()
        return BundleStore.of(
            self.name, Catalogue.read(loaded.regions_file), ledger_registry(loaded.secrets_dir)
        )

    @cached_property
    def _placement(self) -> PlacementCheck | None:
        """Check of the tasks' queues and hints; None where the bundle was given a store, without a catalogue."""
        if self._given_store is not None:
            return None
        loaded = settings.load()
        return placement_check(Catalogue.read(loaded.regions_file), loaded)

    def _in_use(self, version: str) -> bool:
        """Return whether the directory is displayed, or was used by a task of this machine; Airflow then removes it."""
        tracked: bool = get_bundle_tracking_file(self.name, version).exists()
        return tracked or version == self._shown or version in self._environments(self._shown)

    # --- What this machine remembers --------------------------------------------------------------------

    def _directory(self, name: str) -> Path:
        directory: Path = self.base_dir / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _read(self, name: str) -> str | None:
        try:
            return (self._directory("state") / name).read_text() or None
        except FileNotFoundError:
            return None

    def _write(self, name: str, text: str) -> None:
        target = self._directory("state") / name
        scratch = target.with_suffix(f".{os.getpid()}")
        scratch.write_text(text)
        scratch.replace(target)
