"""Pushing DAG code: `Publisher` on the gateway's side, `push` on the client's.

A push is a tar, gzip-compressed or not, of a DAG folder. It is unpacked into a scratch directory, parsed in a child
process that has neither a database nor this process's secrets in its environment, packed anew (so the version does not
depend on who made the tar), published to all regions and made current. If a file does not parse, nothing is published
and the version before stays current.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from airbridge.executor import parsing
from airbridge.executor._airflow import airflow_option, refresh_soon
from airbridge.executor.bundle_source import PushSource, source_of
from airbridge.executor.bundle_store import BundleStore
from airbridge.executor.exceptions import BundleError, BundleRefused, PreconditionFailed
from airbridge.executor.regions import Catalogue
from airbridge.executor.settings import Settings
from airbridge.executor.snapshot import Snapshot, extract, pack

log = structlog.get_logger(__name__)

CONTENT_TYPE = "application/gzip"
PARSE_SECONDS = 120.0
_CHECKS_AT_ONCE = 2
_RACES = 5


class Publisher:
    """Takes pushes of all bundles. Safe between threads.

    `store_of` opens a bundle's store, `check_bundle` raises `BundleError` unless a bundle takes pushes, `notify` is told
    of a bundle that has a new version, and `environment` is what the parser's child process gets.
    """

    def __init__(
        self,
        store_of: Callable[[str], BundleStore],
        check_bundle: Callable[[str], None],
        *,
        environment: Mapping[str, str],
        notify: Callable[[str], None] = lambda _: None,
        parse_seconds: float = PARSE_SECONDS,
    ) -> None:
        self._store_of = store_of
        self._check_bundle = check_bundle
        self._environment = environment
        self._notify = notify
        self._parse_seconds = parse_seconds
        self._checking = threading.BoundedSemaphore(_CHECKS_AT_ONCE)

    def __call__(self, bundle: str, archive: bytes, actor: str) -> str:
        """Publish a tar and return its version.

        Raises `BundleRefused` if a file does not parse, `BundleError` for everything else that is wrong.
        """
        self._check_bundle(bundle)
        store = self._store_of(bundle)
        with tempfile.TemporaryDirectory(prefix="airbridge-push-") as scratch:
            tree = Path(scratch, "dags")
            tree.mkdir()
            extract(archive, tree)
            snapshot = pack(tree)
            if store.pointer().version != snapshot.version:
                self._check(bundle, tree, actor)
        return self._publish(store, snapshot, actor)

    def _check(self, bundle: str, tree: Path, actor: str) -> None:
        with self._checking:
            verdict = parsing.check(
                tree, environment=self._environment, timeout_seconds=self._parse_seconds, confined=True
            )
        if verdict.failures:
            failures = [str(failure) for failure in verdict.failures]
            log.warning("dags.push_refused", bundle=bundle, actor=actor, failures=failures)
            raise BundleRefused(bundle, verdict.failures)

    def _publish(self, store: BundleStore, snapshot: Snapshot, actor: str) -> str:
        """Make the snapshot current. Of pushes at the same time the last one stays."""
        for _ in range(_RACES):
            seen = store.pointer()
            if seen.version == snapshot.version:
                return snapshot.version
            try:
                store.publish(snapshot, actor, seen)
            except PreconditionFailed:
                continue
            self._notify(store.bundle)
            return snapshot.version
        raise BundleError(
            f"bundle {store.bundle!r} is being pushed to by many at once: push again", transient=True
        )


def publisher(settings: Settings) -> Publisher:
    """The publisher of this deployment: its regions, and the bundles of Airflow's configuration that take pushes."""
    catalogue = Catalogue.read(settings.regions_file)
    return Publisher(
        lambda bundle: BundleStore.of(bundle, catalogue),
        check_configured,
        environment=parsing.untrusted_environment(os.environ),
        notify=refresh_soon,
    )


def check_configured(bundle: str) -> None:
    """Raise `BundleError` unless Airflow's configuration has a bundle of this name that takes pushes."""
    entries = json.loads(airflow_option("dag_processor", "dag_bundle_config_list") or "[]")
    kwargs = {entry["name"]: entry.get("kwargs", {}) for entry in entries}
    if bundle not in kwargs:
        known = ", ".join(sorted(kwargs)) or "none"
        raise BundleError(
            f"there is no bundle {bundle!r}: [dag_processor] dag_bundle_config_list has {known}"
        )
    if "source" not in kwargs[bundle]:
        raise BundleError(f"bundle {bundle!r} is not an AirBridge bundle: nothing can be pushed to it")
    source = source_of(bundle, kwargs[bundle]["source"])
    if not isinstance(source, PushSource):
        raise BundleError(
            f'bundle {bundle!r} takes its code from {source.actor}, not from pushes: push to one whose source is {{"kind": "push"}}'
        )


# --- The client's side ------------------------------------------------------------------------------


class PutsBytes(Protocol):
    """The part of `airbridge.control_plane.operator_client.OperatorClient` that a push needs."""

    def put_bytes(self, path: str, content: bytes, content_type: str) -> Any:
        """Send a file; return the answer's JSON."""
        ...


@dataclass(frozen=True)
class Pushed:
    """A push that was accepted: the version that is current now."""

    bundle: str
    version: str
    files: int
    archive_bytes: int


def push(client: PutsBytes, folder: Path, bundle: str) -> Pushed:
    """Push a folder to a bundle. Raises `BundleError` for a folder that cannot be packed, and what `client` raises."""
    snapshot = pack(folder)
    archive = snapshot.compressed()
    answer = client.put_bytes(f"dags/{bundle}", archive, CONTENT_TYPE)
    return Pushed(bundle, answer["version"], snapshot.files, len(archive))
