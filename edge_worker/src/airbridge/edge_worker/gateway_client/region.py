"""Region of the worker, known from its enrolment: queue, buckets, and the keys that sign work items.

Nothing of it is secret. The settings are journalled, so that a worker restarted during a cut has its buckets, and so are the
keys of snapshots; the keys of work items are not, because nothing new is claimed before contact with the gateway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from pydantic import TypeAdapter

from airbridge.core.code.signature import SnapshotVerifier
from airbridge.core.exceptions import StoreError
from airbridge.core.protocol import BundleRef, Credentials, RegionSettings, VerifyKey
from airbridge.core.signing import Verifier
from airbridge.edge_worker.exceptions import IdentityError
from airbridge.edge_worker.journal.rows import SetMeta
from airbridge.edge_worker.transfer.interfaces import RegionStore

StoreMaker = Callable[[RegionSettings, str], RegionStore]

# Name of the settings among the meta data of the journal.
REGION_META = "region_settings"
_KEYS_META = "publish_keys"
_KEYS = TypeAdapter(tuple[VerifyKey, ...])


def journalled_settings(meta: Mapping[str, str]) -> RegionSettings | None:
    """Return the settings that an earlier process journalled, if any."""
    known = meta.get(REGION_META)
    return None if known is None else RegionSettings.model_validate_json(known)


class WorkerRegion:
    """See the module. `bundles`, `logs` and `create_stores` may be called in threads."""

    def __init__(self, make_store: StoreMaker) -> None:
        self._make_store = make_store
        self._stores: dict[str, RegionStore] = {}
        self._lock = threading.Lock()
        self._verifier: Verifier | None = None
        self._publish_keys: tuple[VerifyKey, ...] | None = None
        self.settings: RegionSettings | None = None

    def restore(self, meta: Mapping[str, str]) -> None:
        """Restore the settings that an earlier process journalled."""
        self.settings = journalled_settings(meta)
        keys = meta.get(_KEYS_META)
        if keys is not None:
            self._publish_keys = _KEYS.validate_json(keys)

    def adopt(self, credentials: Credentials) -> list[SetMeta]:
        """Adopt new credentials; return the changes to be journalled."""
        self._verifier = Verifier(credentials.trust.verify_keys)
        new: list[SetMeta] = []
        if credentials.trust.publish_keys != self._publish_keys:
            self._publish_keys = credentials.trust.publish_keys
            new.append(SetMeta(_KEYS_META, _KEYS.dump_json(self._publish_keys).decode()))
        if credentials.settings != self.settings:
            with self._lock:
                self.settings = credentials.settings
                self._stores.clear()
            new.append(SetMeta(REGION_META, credentials.settings.model_dump_json()))
        return new

    def check_snapshot(self, ref: BundleRef, signature: str | None) -> None:
        """Check that the control plane published a snapshot. Raises `BundleError`; `StoreError` while no key is known."""
        if self._publish_keys is None:
            raise StoreError("the keys of snapshots are not known before the first enrolment", transient=True)
        verifier = SnapshotVerifier(self._publish_keys)
        if verifier.required:
            verifier.check(ref.name, ref.version, signature)

    def verifier(self) -> Verifier:
        """Return the current keys. Raises `IdentityError` before the first enrolment."""
        if self._verifier is None:
            raise IdentityError("there are no keys to verify work items with yet")
        return self._verifier

    def bundles(self) -> RegionStore:
        """Return the bucket of DAG code. Raises `StoreError` while the region is not known."""
        return self._store(self._known().bundle_bucket)

    def logs(self) -> RegionStore:
        """Return the bucket of logs. Raises `StoreError` while the region is not known."""
        return self._store(self._known().log_bucket)

    def create_stores(self) -> None:
        """Create the bucket clients, which takes about a second, before the first task needs them."""
        self.bundles()
        self.logs()

    def _store(self, bucket: str) -> RegionStore:
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = self._make_store(self._known(), bucket)
            return self._stores[bucket]

    def _known(self) -> RegionSettings:
        if self.settings is None:
            raise StoreError("the region's buckets are not known before the first enrolment", transient=True)
        return self.settings
