"""AirBridge's DAG bundle: DAG code, published to every region by the digest of its content.

The dag-processor refreshes it. When its source's content has changed and parses, a new snapshot is published and
becomes current; `path` is then that snapshot, unpacked, so what is parsed is what the version names. A refused
snapshot (a file does not parse) leaves the one before it current; its errors stand among the UI's import errors.

Several dag-processors may run. A source's change is published by whichever sees it first; the others find it
current already. Where their folders differ (a rolling deployment), none overrules another without a change of its own:
each remembers, across restarts, what it has acted on, and adopts what is current otherwise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog
from airflow.dag_processing.bundles.base import BaseDagBundle, get_bundle_tracking_file
from airflow.exceptions import AirflowException

from airbridge.executor import parsing, settings
from airbridge.executor._airflow import report_import_errors
from airbridge.executor.bundle_source import Look, PushSource, source_of
from airbridge.executor.bundle_store import BundleStore, Pointer
from airbridge.executor.exceptions import AirBridgeError, BundleError, ParseFailure, PreconditionFailed
from airbridge.executor.regions import Catalogue
from airbridge.executor.snapshot import Snapshot, hex_of, pack, unpack
from airbridge.executor.snapshot_cache import SnapshotCache

log = structlog.get_logger(__name__)

CHECK_AGAIN_SECONDS = 300.0
"""A refused snapshot is checked again after this long: the cause may have been the machine (a timeout, a missing package)."""


@dataclass(frozen=True)
class _Refusal:
    failures: tuple[ParseFailure, ...]
    until: float


class AirBridgeBundle(BaseDagBundle):  # type: ignore[misc]  # Airflow publishes no types
    """A versioned bundle; its version is ``sha256:<hex>``.

    :param source: where the code comes from, see `airbridge.executor.bundle_source`
    :param refuse_broken: whether a snapshot with a file that does not parse is refused as a whole. False publishes
        it, and Airflow shows the import errors of the broken files, as with its own bundles.
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
        if self.version is not None:
            hex_of(self.version)
        self.source = source_of(self.name, source)
        self._refuse_broken = refuse_broken
        self._parse_seconds = parse_seconds
        self._given_store = store
        self._cache = SnapshotCache(self.versions_dir, max_versions, in_use=self._in_use)
        self._shown: str | None = None
        self._mark: str | None = None
        self._refused: _Refusal | None = None
        self._reported: bool | None = None

    # --- What Airflow calls ---------------------------------------------------------------------------

    def initialize(self) -> None:
        """Make `path` ready: the version asked for, or else what is current. Raises `AirflowException`."""
        try:
            if self.version is not None:
                self._unpack(self.version)
            elif not self._show_current():
                self.refresh()
        except AirBridgeError as error:
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
            try:
                self._refresh()
            except BundleError as error:
                if self._shown is None:
                    raise
                log.warning("bundle.refresh_failed", bundle=self.name, version=self._shown, error=str(error))

    def get_current_version(self) -> str | None:
        """The version that `path` shows; None before the first was published."""
        return self.version or self._shown

    @property
    def path(self) -> Path:
        """The unpacked snapshot; an empty directory before the first was published.

        Airflow's dag-processor asks for the path of a pinned version without initialising the bundle
        (`_add_callback_to_queue`), outside any error handling: the snapshot is fetched then, and a failure only logged.
        """
        version = self.get_current_version()
        if version is None:
            empty: Path = self.base_dir / "empty"
            empty.mkdir(parents=True, exist_ok=True)
            return empty
        try:
            return self._unpack(version)
        except AirBridgeError as error:
            log.warning("bundle.fetch_failed", bundle=self.name, version=version, error=str(error))
            return self._cache.path(version)

    # --- Publishing -------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        pointer = self._store.pointer()
        try:
            version = self._offer(pointer)
        except BundleError as error:
            if pointer.version is None:
                raise
            log.warning("bundle.source_failed", bundle=self.name, error=str(error))
            version = pointer.version
        self._show(version)
        self._store.supply(version)

    def _offer(self, pointer: Pointer) -> str | None:
        """Publish the source's content if it is news and parses; return the version that is current then."""
        if isinstance(self.source, PushSource):
            return pointer.version
        look = self.source.look(self._directory("source"))
        if self._unchanged(look, pointer):
            self._report()
            return pointer.version
        snapshot = pack(look.root)
        version = pointer.version
        if not self._is_news(snapshot, pointer):
            self._refused = None
            self._write("ACTED_ON", snapshot.version)
        elif self._parses(snapshot):
            version = self._publish(snapshot, pointer)
        self._report()
        # After a lost race the next refresh looks again: what the other published may be newer than this look.
        lost_race = self._refused is None and snapshot.version != self._read("ACTED_ON")
        self._mark = None if lost_race else look.mark
        return version

    def _unchanged(self, look: Look, pointer: Pointer) -> bool:
        if look.mark != self._mark:
            return False
        if self._refused is not None:
            return time.monotonic() < self._refused.until
        return pointer.version is not None

    def _is_news(self, snapshot: Snapshot, pointer: Pointer) -> bool:
        return pointer.version is None or snapshot.version not in {pointer.version, self._read("ACTED_ON")}

    def _parses(self, snapshot: Snapshot) -> bool:
        self._refused = None
        if not self._refuse_broken:
            return True
        tree = self._cache.get(
            snapshot.version, lambda path: unpack([snapshot.compressed()], snapshot.version, path)
        )
        environment = parsing.trusted_environment(os.environ)
        failures = parsing.check(tree, environment=environment, timeout_seconds=self._parse_seconds).failures
        for failure in failures:
            log.error("bundle.refused", bundle=self.name, version=snapshot.version, failure=str(failure))
        if failures:
            self._refused = _Refusal(failures, until=time.monotonic() + CHECK_AGAIN_SECONDS)
        return not failures

    def _publish(self, snapshot: Snapshot, pointer: Pointer) -> str | None:
        try:
            self._store.publish(snapshot, self.source_actor, pointer)
        except PreconditionFailed:
            return self._store.pointer().version
        self._write("ACTED_ON", snapshot.version)
        return snapshot.version

    @property
    def source_actor(self) -> str:
        """Who publishes, for the record."""
        return "push" if isinstance(self.source, PushSource) else self.source.actor

    def _report(self) -> None:
        """Have the UI show what is refused, each time anew: Airflow drops import errors that it does not know."""
        if self._refused is None and self._reported is False:
            return
        report_import_errors(self.name, _by_file(self._refused.failures if self._refused else ()))
        self._reported = self._refused is not None

    # --- Showing ------------------------------------------------------------------------------------------

    def _show_current(self) -> bool:
        """Show what is current, or what was when this machine last knew; False if there is nothing."""
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
        if version is not None and version != self._shown:
            self._unpack(version)
            self._write("SHOWN", version)
        self._shown = version

    def _unpack(self, version: str) -> Path:
        return self._cache.get(version, lambda path: self._store.fetch(version, path))

    @cached_property
    def _store(self) -> BundleStore:
        if self._given_store is not None:
            return self._given_store
        return BundleStore.of(self.name, Catalogue.read(settings.load().regions_file))

    def _in_use(self, version: str) -> bool:
        """Whether it is shown, or a task of this machine has used it: Airflow then removes it itself, in time."""
        tracked: bool = get_bundle_tracking_file(self.name, version).exists()
        return tracked or version == self._shown

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


def _by_file(failures: Sequence[ParseFailure]) -> dict[str, str]:
    """One text a file, as the UI lists import errors."""
    texts: dict[str, str] = {}
    for failure in failures:
        texts[failure.file] = "\n".join(filter(None, [texts.get(failure.file), str(failure)]))
    return texts
