"""Bundles: the current version of each, the signatures of their snapshots, and the environments that were pushed for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, delete, exc, select, tuple_, update

from airbridge.core.code import environment
from airbridge.core.code.signature import SnapshotSigner, SnapshotVerifier, key_of
from airbridge.core.exceptions import BundleError
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import BundleRow, EnvironmentRow, SnapshotRow

# Signatures that are renewed between two looks at the database.
_RENEWED_AT_ONCE: Final = 500
# Environments that are kept of one bundle's pushes, the newest.
KEPT_ENVIRONMENTS: Final = 20

_SNAPSHOT: Final = SnapshotRow.__table__
_SIGNATURES: Final = select(_SNAPSHOT.c.bundle, _SNAPSHOT.c.version, _SNAPSHOT.c.signature).where(
    _SNAPSHOT.c.version.in_(bindparam("versions", expanding=True))
)


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
    rows = session.execute(_SIGNATURES, {"versions": sorted({version for _, version in wanted})})
    found = {(bundle, version): signature for bundle, version, signature in rows}
    return {key: signature for key, signature in found.items() if key in wanted}


def signed_by(session: Any) -> dict[str, int]:
    """Return how many snapshots are signed by each key, by its id; an empty id has those whose signature is none."""
    return dict(Counter(key_of(signature) for signature in session.scalars(select(_SNAPSHOT.c.signature))))


def signed_otherwise(session: Any, kid: str) -> bool:
    """Return whether a snapshot has a signature that is not of this key."""
    query = select(SnapshotRow.bundle).where(~_is_of(kid)).limit(1)
    return session.execute(query).first() is not None


def _is_of(kid: str) -> Any:
    return SnapshotRow.signature.contains(f'"kid":"{kid}"', autoescape=True)


def renew_signatures(session: Any, signer: SnapshotSigner, verifier: SnapshotVerifier) -> int:
    """Sign again what `verifier` accepts as signed by another key, for the same publisher; return how many snapshots.

    What it does not accept stays as it is: a signature that nobody can check is not to be made good.
    """
    renewed, after = 0, ("", "")
    own = _is_of(signer.verify_key.kid)
    while True:
        query = select(SnapshotRow).where(~own, tuple_(SnapshotRow.bundle, SnapshotRow.version) > after)
        rows = session.scalars(
            query.order_by(SnapshotRow.bundle, SnapshotRow.version).limit(_RENEWED_AT_ONCE)
        ).all()
        if not rows:
            return renewed
        for row in rows:
            after = (row.bundle, row.version)
            with suppress(BundleError):
                publisher = verifier.check(row.bundle, row.version, row.signature)
                row.signature = signer.sign(row.bundle, row.version, publisher)
                renewed += 1
        session.flush()


def keep_environment(
    session: Any, bundle: str, inputs: str, files: Mapping[str, bytes], publisher: str
) -> None:
    """Keep an environment's manifest and lock for what it was built from, in place of an older one; forget the oldest."""
    row: EnvironmentRow | None = session.get(EnvironmentRow, (bundle, inputs))
    if row is None:
        row = EnvironmentRow(bundle=bundle, inputs=inputs)
        session.add(row)
    row.manifest = files[environment.MANIFEST].decode()
    row.lock = files[environment.LOCK].decode()
    row.publisher, row.pushed_at = publisher, clock.now(session)
    session.flush()
    newest = (
        select(EnvironmentRow.inputs)
        .where(EnvironmentRow.bundle == bundle)
        .order_by(EnvironmentRow.pushed_at.desc(), EnvironmentRow.inputs)
    )
    if old := session.scalars(newest.offset(KEPT_ENVIRONMENTS)).all():
        session.execute(
            delete(EnvironmentRow).where(EnvironmentRow.bundle == bundle, EnvironmentRow.inputs.in_(old))
        )


def environment_of(session: Any, bundle: str, inputs: str) -> dict[str, bytes] | None:
    """Return the files of the environment that was pushed for these inputs; None if there is none."""
    row: EnvironmentRow | None = session.get(EnvironmentRow, (bundle, inputs), populate_existing=True)
    if row is None:
        return None
    return {environment.MANIFEST: row.manifest.encode(), environment.LOCK: row.lock.encode()}
