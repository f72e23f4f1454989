"""Push DAG code: `Publisher` in the gateway, `push` in the client; `check` does without both.

A push is a tar, gzip-compressed or not, of a DAG folder. It is unpacked into a scratch directory, parsed in a child
process that has neither a database nor this process's secrets in its environment, packed again (so that the version does
not depend on the tool that made the tar), published to all regions and made current. If a file does not parse, a task could
not be placed, a DAG id is another bundle's or there is no DAG, nothing is published and the previous version stays current.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from airbridge.core.catalogue import Catalogue
from airbridge.core.code import environment
from airbridge.core.code.snapshot import Snapshot, extract, pack, unpack
from airbridge.core.exceptions import (
    BundleError,
    BundleRefused,
    EnvironmentRefused,
    ParseFailure,
    PreconditionFailed,
)
from airbridge.executor._airflow import airflow_option, dags_of_other_bundles
from airbridge.executor.bundle_settings import PackageSettings, load_packages
from airbridge.executor.bundles import parse_environment
from airbridge.executor.bundles.check import TreeCheck, placement_check
from airbridge.executor.bundles.environments.builder import EnvironmentBuilder, Order, Prepared
from airbridge.executor.bundles.parsing import ParseReport
from airbridge.executor.bundles.registry import ledger_registry
from airbridge.executor.bundles.source import PushSource, source_of
from airbridge.executor.bundles.store import BundleStore
from airbridge.executor.placement.check import PlacementCheck
from airbridge.executor.setting_values import Sandbox
from airbridge.executor.settings import Settings

log = structlog.get_logger(__name__)

CONTENT_TYPE = "application/gzip"
PARSE_SECONDS = 120.0
# Time of a push that building its packages may take: the answer comes within 300 s.
BUILD_SECONDS = 150.0
_RACES = 5
_NO_DAG = (
    "push the folder that holds the DAG files; to end a bundle, take it out of "
    "[dag_processor] dag_bundle_config_list"
)


@dataclass(frozen=True)
class Accepted:
    """Accepted archive: its version, and the seconds that its packages and DAG files took.

    They are None for content that is current already, whose files are not checked again. `recorded` is whether the version was made
    current for this push, and the push recorded with that.
    """

    version: str
    check_seconds: float | None = None
    recorded: bool = False


def _record_nothing(_session: Any, _version: str) -> None:
    pass


@dataclass(frozen=True)
class PushTerms:
    """Who pushes, and until when the version may become current (of `time.monotonic`).

    `record` is called in the transaction that makes it current, with its session and the version.
    """

    actor: str
    deadline: float = math.inf
    record: Callable[[Any, str], None] = _record_nothing


# Work between two steps of a push: a build, which may take minutes and uses no database. It raises nothing.
Work = Callable[[], None]
Steps = Generator[Work, None, Accepted]


def advance(steps: Steps) -> Work | Accepted:
    """Run the next step of a push; return the work to call before the one after it, or what came of the push. Raises `BundleError`."""
    try:
        return next(steps)
    except StopIteration as end:
        accepted: Accepted = end.value
        return accepted


class Publisher:
    """Publishes pushed archives to bundles. Thread-safe.

    `store_of` opens a bundle's store, `check_bundle` raises `BundleError` unless a bundle takes pushes, and `check` judges a tree
    before it is published.
    """

    def __init__(
        self,
        store_of: Callable[[str], BundleStore],
        check_bundle: Callable[[str], None],
        *,
        check: TreeCheck,
        packages: PackageSettings | None = None,
    ) -> None:
        self._store_of = store_of
        self._check_bundle = check_bundle
        self._check_tree = check
        self._packages = packages or PackageSettings()

    def __call__(self, bundle: str, archive: bytes, actor: str) -> Accepted:
        """Publish a tar and return its version, with the duration of its check.

        Raises `BundleRefused` if a file does not parse, `BundleError` for any other fault.
        """
        steps = self.steps(bundle, archive, PushTerms(actor))
        while not isinstance(done := advance(steps), Accepted):
            done()
        return done

    def steps(self, bundle: str, archive: bytes, terms: PushTerms) -> Steps:
        """Publish a tar in steps, see `advance`. Raises as a call does, and a transient `BundleError` after the deadline."""
        self._check_bundle(bundle)
        store = self._store_of(bundle)
        with tempfile.TemporaryDirectory(prefix="airbridge-push-") as scratch:
            tree = Path(scratch, "dags")
            tree.mkdir()
            extract(archive, tree)
            current = store.pointer().version
            began = time.monotonic()
            prepared = yield from self._prepare(store, tree, current, Path(scratch))
            snapshot = pack(tree, added=prepared.files)
            seconds = None
            if current != snapshot.version:
                packages = _unpack_packages(store, prepared, Path(scratch))
                self._check(bundle, tree, terms.actor, packages)
                seconds = round(time.monotonic() - began, 2)
            published = self._publish(store, snapshot, terms, prepared)
            return Accepted(snapshot.version, seconds, recorded=published)

    def _prepare(
        self, store: BundleStore, tree: Path, current: str | None, scratch: Path
    ) -> Generator[Work, None, Prepared]:
        """Return the environment of a tree; yield its build if it has to be built. Raises `BundleRefused`."""

        def fetched() -> Path | None:
            try:
                if current is None:
                    return None
                store.fetch(current, scratch / "current")
            except BundleError as error:
                log.warning(
                    "dags.current_not_fetched", bundle=store.bundle, version=current, error=str(error)
                )
                return None
            return scratch / "current"

        builder = EnvironmentBuilder(scratch / "environments", self._packages, os.environ)
        try:
            found = builder.find(tree, fetched, store.pushed_environment)
            if not isinstance(found, Order):
                return found
            built: Future[Prepared] = Future()
            yield partial(_build, builder, found, built)
            return built.result(timeout=0)
        except EnvironmentRefused as error:
            raise BundleRefused(store.bundle, error.failures) from error

    def _check(self, bundle: str, tree: Path, actor: str, packages: Path | None) -> None:
        verdict = self._check_tree(bundle, tree, packages)
        if verdict.failures:
            failures = [str(failure) for failure in verdict.failures]
            log.warning("dags.push_refused", bundle=bundle, actor=actor, failures=failures)
            raise BundleRefused(bundle, verdict.failures)
        if not verdict.files and not verdict.unjudged:
            raise BundleError(f"what was pushed to bundle {bundle!r} defines no DAG: {_NO_DAG}")

    def _publish(
        self, store: BundleStore, snapshot: Snapshot, terms: PushTerms, prepared: Prepared | None = None
    ) -> bool:
        """Make the snapshot current; return False if it is already. The last of concurrent pushes wins."""
        archives = prepared.archives if prepared else {}
        for _ in range(_RACES):
            seen = store.pointer()
            if seen.version == snapshot.version:
                return False
            try:
                store.publish(
                    snapshot,
                    terms.actor,
                    seen,
                    environments=archives,
                    deadline=terms.deadline,
                    recorder=lambda session: terms.record(session, snapshot.version),
                )
            except PreconditionFailed:
                continue
            return True
        raise BundleError(
            f"too many concurrent pushes to bundle {store.bundle!r}: push again", transient=True
        )


def _build(builder: EnvironmentBuilder, order: Order, built: Future[Prepared]) -> None:
    try:
        built.set_result(builder.build(order))
    except Exception as error:  # noqa: BLE001 - raised by the next step
        built.set_exception(error)


def _unpack_packages(store: BundleStore | None, prepared: Prepared, scratch: Path) -> Path | None:
    """Return the environment for this machine, unpacked for a check; None if there is none. Raises `BundleError`."""
    manifest = prepared.files.get(environment.MANIFEST)
    if manifest is None:
        return None
    version = environment.Environment.decode(manifest).version_for(*environment.this_platform())
    path = scratch / version
    if version in prepared.archives:
        environment.unpack_environment([prepared.archives[version].read_bytes()], version, path)
    elif store is not None:
        store.fetch_environment(version, path)
    return path


def publisher(settings: Settings) -> Publisher:
    """Return the publisher for the catalogue's regions and the push bundles of Airflow's configuration."""
    catalogue = Catalogue.read(settings.regions_file)
    registry = ledger_registry(settings.secrets_dir)
    packages = load_packages()
    return Publisher(
        lambda bundle: BundleStore.of(bundle, catalogue, registry),
        check_configured,
        check=TreeCheck(
            environment=parse_environment.of(os.environ, settings.parse_environment or ()),
            timeout_seconds=PARSE_SECONDS,
            required=settings.sandbox is Sandbox.REQUIRE,
            placement=placement_check(catalogue, settings),
            taken=dags_of_other_bundles,
        ),
        packages=replace(packages, seconds=min(packages.seconds, BUILD_SECONDS)),
    )


def check_configured(bundle: str) -> None:
    """Raise `BundleError` unless Airflow's configuration has a bundle of this name that takes pushes."""
    source = source_of(bundle, check_airbridge_bundle(bundle))
    if not isinstance(source, PushSource):
        raise BundleError(
            f'bundle {bundle!r} takes its code from {source.actor}, not from pushes: push to one whose source is {{"kind": "push"}}'
        )


def check_airbridge_bundle(bundle: str) -> Mapping[str, Any]:
    """Return the source of a bundle of AirBridge's in Airflow's configuration. Raises `BundleError` if there is none."""
    entries = json.loads(airflow_option("dag_processor", "dag_bundle_config_list") or "[]")
    kwargs = {entry["name"]: entry.get("kwargs", {}) for entry in entries}
    if bundle not in kwargs:
        known = ", ".join(sorted(kwargs)) or "none"
        raise BundleError(
            f"there is no bundle {bundle!r}: [dag_processor] dag_bundle_config_list has {known}"
        )
    if "source" not in kwargs[bundle]:
        raise BundleError(f"bundle {bundle!r} is not an AirBridge bundle: nothing can be pushed to it")
    source: Mapping[str, Any] = kwargs[bundle]["source"]
    return source


# --- Without a platform -----------------------------------------------------------------------------


def check(folder: Path, regions_file: Path | None, *, timeout_seconds: float = PARSE_SECONDS) -> ParseReport:
    """Check a folder as a push does, without a platform: against a region catalogue, or only how hints are written.

    Raises `BundleError` for a folder that is none or too large, and `ConfigurationError` for the catalogue.
    """
    placement = PlacementCheck()
    if regions_file is not None:
        found = {"regions_file": str(regions_file), "secrets_dir": str(folder)}  # it signs nothing
        placement = PlacementCheck(
            placement_check(Catalogue.read(regions_file), Settings.read(found.get)).placement
        )
    left_out: list[ParseFailure] = []
    judge = TreeCheck(parse_environment.of(os.environ), timeout_seconds, placement=placement)
    with tempfile.TemporaryDirectory(prefix="airbridge-check-") as scratch:
        try:
            prepared = EnvironmentBuilder(Path(scratch, "environments"), load_packages(), os.environ).prepare(
                folder
            )
        except EnvironmentRefused as error:
            prepared = Prepared()
            left_out += error.failures
        snapshot = pack(folder, left_out=left_out, added=prepared.files)
        tree = Path(scratch, "dags")
        unpack([snapshot.compressed()], snapshot.version, tree)
        packages = _unpack_packages(None, prepared, Path(scratch))
        report = judge("", tree, packages).with_failures(left_out)
    if report.files or report.unjudged or report.failures:
        return report
    return report.with_failures(
        [ParseFailure(str(folder), None, "defines no DAG: name the folder that holds the DAG files")]
    )


# --- The client's side ------------------------------------------------------------------------------


class PutsBytes(Protocol):
    """Part of `airbridge.control_plane.operator_client.OperatorClient` that a push needs."""

    def put_bytes(self, path: str, content: bytes, content_type: str, sent: Callable[[int], None]) -> Any:
        """Send a file, calling `sent` with the bytes that have been sent so far; return the answer's JSON."""
        ...


class PushWatcher(Protocol):
    """Observer of a push."""

    def packed(self, files: int, archive_bytes: int) -> None:
        """Note that the archive is made, and is about to be sent."""
        ...

    def sent(self, sent_bytes: int) -> None:
        """Note how much of the archive has been sent. After the last byte the gateway checks it."""
        ...


@dataclass(frozen=True)
class Pushed:
    """Accepted push, with the version that is now current.

    `check_seconds` is None if the version was current already, or if the gateway is older than this field.
    """

    bundle: str
    version: str
    files: int
    archive_bytes: int
    check_seconds: float | None = None


def push(client: PutsBytes, folder: Path, bundle: str, watcher: PushWatcher) -> Pushed:
    """Push a folder to a bundle. Raises `BundleError` for a folder that cannot be packed, and what `client` raises."""
    snapshot = pack(folder)
    if not snapshot.files:
        raise BundleError(f"the folder {folder} has no files: {_NO_DAG}")
    archive = snapshot.compressed()
    watcher.packed(snapshot.files, len(archive))
    answer = client.put_bytes(f"dags/{bundle}", archive, CONTENT_TYPE, watcher.sent)
    return Pushed(bundle, answer["version"], snapshot.files, len(archive), answer.get("check_seconds"))
