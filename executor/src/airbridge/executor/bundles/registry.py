"""Registry of each bundle's current version and its snapshots' signatures: in the database, out of reach of who can write to a bucket.

`DatabaseRegistry` is the control plane's; `MemoryRegistry` is a full twin for tests. Both pass
`tests/contract/test_bundle_registry.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog
from sqlalchemy import exc as sql

from airbridge.core.code.signature import PUBLISH_KEY, SnapshotSigner
from airbridge.core.code.snapshot import is_version
from airbridge.core.exceptions import BundleError, ConfigurationError, PreconditionFailed
from airbridge.executor.bundles import versions
from airbridge.executor.bundles.versions import CurrentVersion
from airbridge.executor.ledger import audit, events

log = structlog.get_logger(__name__)

# Publisher of versions that Airflow had recorded before snapshots were signed.
ADOPTED = "adopted"

# Called with the session of the transaction that changes a bundle; what it writes stands if the change does.
Recorder = Callable[[Any], None]


def record_nothing(_session: Any) -> None:
    """Write nothing beside a change."""


class Registry(Protocol):
    """Current versions and signatures of all bundles."""

    def current(self, bundle: str) -> CurrentVersion | None:
        """Return the current version; None before the first was published."""

    def publish(
        self,
        bundle: str,
        version: str,
        publisher: str,
        seen: int | None,
        recorder: Recorder = record_nothing,
    ) -> None:
        """Sign a version and make it current, if the serial is still `seen`. Raises `PreconditionFailed`."""

    def adopt(self, bundle: str, current: str, others: Iterable[str]) -> None:
        """Sign versions of before signatures, and make `current` current, unless the bundle has a version already."""

    def keep_environment(
        self,
        bundle: str,
        inputs: str,
        files: Mapping[str, bytes],
        publisher: str,
        recorder: Recorder = record_nothing,
    ) -> None:
        """Keep the files of an environment that was pushed, by the digest of its inputs. Of a bundle the newest are kept."""

    def environment(self, bundle: str, inputs: str) -> Mapping[str, bytes] | None:
        """Return the files of the environment that was pushed for these inputs; None if there is none."""

    def record(self, event: str, bundle: str, **detail: Any) -> None:
        """Write an event about a bundle to the timeline and the audit trail."""


class DatabaseRegistry:
    """The ledger's tables. `signer` is called at every publishing, so that a new key is taken up.

    A database that cannot be reached is a transient `BundleError`.
    """

    def __init__(
        self,
        new_session: Callable[[], AbstractContextManager[Any]],
        signer: Callable[[], SnapshotSigner],
    ) -> None:
        self._open = new_session
        self._sign = signer

    @contextmanager
    def _new_session(self) -> Iterator[Any]:
        try:
            with self._open() as session:
                yield session
        except (sql.SQLAlchemyError, RuntimeError) as error:
            # Airflow refuses sessions in a task's process by a RuntimeError.
            raise BundleError(f"the ledger of bundles cannot be reached: {error}", transient=True) from error

    def current(self, bundle: str) -> CurrentVersion | None:
        """See `Registry.current`."""
        with self._new_session() as session:
            return versions.current(session, bundle)

    def publish(
        self,
        bundle: str,
        version: str,
        publisher: str,
        seen: int | None,
        recorder: Recorder = record_nothing,
    ) -> None:
        """See `Registry.publish`."""
        signature = self._sign().sign(bundle, version, publisher)
        with self._new_session() as session:
            versions.sign(session, bundle, version, publisher, signature)
            if not versions.make_current(session, bundle, version, publisher, seen):
                raise PreconditionFailed(f"bundle {bundle!r} was changed by another publisher")
            recorder(session)

    def adopt(self, bundle: str, current: str, others: Iterable[str]) -> None:
        """See `Registry.adopt`."""
        signer = self._sign()
        with self._new_session() as session:
            if not versions.make_current(session, bundle, current, ADOPTED, None):
                return
            for version in sorted({current, *others}):
                if is_version(version):
                    signature = signer.sign(bundle, version, ADOPTED)
                    versions.sign(session, bundle, version, ADOPTED, signature)
        log.info("bundle.adopted", bundle=bundle, version=current)

    def keep_environment(
        self,
        bundle: str,
        inputs: str,
        files: Mapping[str, bytes],
        publisher: str,
        recorder: Recorder = record_nothing,
    ) -> None:
        """See `Registry.keep_environment`."""
        with self._new_session() as session:
            versions.keep_environment(session, bundle, inputs, files, publisher)
            recorder(session)

    def environment(self, bundle: str, inputs: str) -> Mapping[str, bytes] | None:
        """See `Registry.environment`."""
        with self._new_session() as session:
            return versions.environment_of(session, bundle, inputs)

    def record(self, event: str, bundle: str, **detail: Any) -> None:
        """See `Registry.record`."""
        with self._new_session() as session:
            events.record(session, event, "bundles", bundle=bundle, **detail)
            audit.record(
                session, event, "changed", "bundles", rule="digest of the snapshot", bundle=bundle, **detail
            )


@dataclass
class MemoryRegistry:
    """A registry in memory. Safe between threads. `new_session` gives recorders their session; without one, None."""

    signer: SnapshotSigner | None = None
    new_session: Callable[[], AbstractContextManager[Any]] = nullcontext
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    signatures: dict[tuple[str, str], str] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _current: dict[str, CurrentVersion] = field(default_factory=dict)
    _environments: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def current(self, bundle: str) -> CurrentVersion | None:
        """See `Registry.current`."""
        return self._current.get(bundle)

    def publish(
        self,
        bundle: str,
        version: str,
        publisher: str,
        seen: int | None,
        recorder: Recorder = record_nothing,
    ) -> None:
        """See `Registry.publish`."""
        with self._lock, self.new_session() as session:
            before = self._current.get(bundle)
            if (before.serial if before else None) != seen:
                raise PreconditionFailed(f"bundle {bundle!r} was changed by another publisher")
            recorder(session)
            self._current[bundle] = CurrentVersion(
                (seen or 0) + 1, version, before.version if before else None, publisher, self.now()
            )
            self._sign(bundle, version, publisher)

    def adopt(self, bundle: str, current: str, others: Iterable[str]) -> None:
        """See `Registry.adopt`."""
        try:
            self.publish(bundle, current, ADOPTED, None)
        except PreconditionFailed:
            return
        for version in filter(is_version, others):
            self._sign(bundle, version, ADOPTED)

    def keep_environment(
        self,
        bundle: str,
        inputs: str,
        files: Mapping[str, bytes],
        publisher: str,  # noqa: ARG002 - nobody asks for it
        recorder: Recorder = record_nothing,
    ) -> None:
        """See `Registry.keep_environment`."""
        with self._lock, self.new_session() as session:
            recorder(session)
            self._environments.pop((bundle, inputs), None)
            self._environments[bundle, inputs] = dict(files)
            mine = [key for key in self._environments if key[0] == bundle]
            for key in mine[: -versions.KEPT_ENVIRONMENTS]:
                del self._environments[key]

    def environment(self, bundle: str, inputs: str) -> Mapping[str, bytes] | None:
        """See `Registry.environment`."""
        return self._environments.get((bundle, inputs))

    def record(self, event: str, bundle: str, **detail: Any) -> None:
        """See `Registry.record`."""
        self.events.append((event, {"bundle": bundle, **detail}))

    def _sign(self, bundle: str, version: str, publisher: str) -> None:
        if self.signer is not None:
            self.signatures[bundle, version] = self.signer.sign(bundle, version, publisher)


def read_signer(path: Path) -> SnapshotSigner:
    """Read the key that signs snapshots. Raises `ConfigurationError`."""
    try:
        return SnapshotSigner.from_pem(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"the publishing key {path} cannot be read: {error.strerror}; 'airbridge init' makes it, "
            "and 'airbridge keys rotate-publishing' in a directory of before snapshots were signed"
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"{path}: {error}; 'airbridge keys rotate-publishing' makes a right one"
        ) from error


def ledger_registry(secrets_dir: Path) -> DatabaseRegistry:
    """Return the registry of this deployment, over Airflow's database."""
    from airbridge.executor import _airflow

    return DatabaseRegistry(_airflow.new_session, partial(read_signer, secrets_dir / PUBLISH_KEY))
