"""Bundles: the current version of each, and the signatures of their snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exc, select, update

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import BundleRow, SnapshotRow


@dataclass(frozen=True, slots=True)
class CurrentVersion:
    """Current version of a bundle; `serial` is what a change must match."""

    serial: int
    version: str
    previous: str | None
    publisher: str
    published_at: datetime


def current(session: Any, bundle: str) -> CurrentVersion | None:
    """Return the current version; None before the first was published."""
    row: BundleRow | None = session.get(BundleRow, bundle, populate_existing=True)
    if row is None:
        return None
    return CurrentVersion(row.serial, row.version, row.previous, row.publisher, row.published_at)


def make_current(session: Any, bundle: str, version: str, publisher: str, seen: int | None) -> bool:
    """Make a version current if the bundle's serial is still `seen` (None: it has none); False if it is not."""
    now = clock.now(session)
    if seen is None:
        row = BundleRow(name=bundle, serial=1, version=version, publisher=publisher, published_at=now)
        try:
            with session.begin_nested():
                session.add(row)
        except exc.IntegrityError:
            return False
        return True
    changed = session.execute(
        update(BundleRow)
        .where(BundleRow.name == bundle, BundleRow.serial == seen)
        .values(
            serial=seen + 1,
            previous=BundleRow.version,
            version=version,
            publisher=publisher,
            published_at=now,
        )
        .execution_options(synchronize_session=False)
    )
    return bool(changed.rowcount)


def sign(session: Any, bundle: str, version: str, publisher: str, signature: str) -> None:
    """Keep a snapshot's signature, in place of an older one."""
    now = clock.now(session)
    row: SnapshotRow | None = session.get(SnapshotRow, (bundle, version))
    if row is None:
        row = SnapshotRow(bundle=bundle, version=version)
        session.add(row)
    row.publisher, row.signature, row.signed_at = publisher, signature, now
    session.flush()


def signatures(session: Any, snapshots: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the signatures of snapshots, by (bundle, version); those without one are left out."""
    wanted = set(snapshots)
    query = select(SnapshotRow.bundle, SnapshotRow.version, SnapshotRow.signature).where(
        SnapshotRow.version.in_(sorted({version for _, version in wanted}))
    )
    found = {(bundle, version): signature for bundle, version, signature in session.execute(query)}
    return {key: signature for key, signature in found.items() if key in wanted}
