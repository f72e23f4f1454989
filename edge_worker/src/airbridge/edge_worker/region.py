"""What enrolment told the worker of its region: queue, buckets, and the keys that sign work items.

Nothing of it is secret. The settings outlive the process in the journal, so that a worker restarted during a cut finds its
buckets; the keys do not, because nothing new is claimed before the gateway was spoken to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from airbridge.edge_worker.exceptions import IdentityError
from airbridge.edge_worker.journal_rows import SetMeta
from airbridge.executor.exceptions import StoreError
from airbridge.executor.protocol import Credentials, RegionSettings
from airbridge.executor.signing import Verifier
from airbridge.executor.store import ObjectStore

StoreMaker = Callable[[RegionSettings, str], ObjectStore]

_META = "region_settings"


class Region:
    """See the module. `bundles`, `logs` and `warm` may be called in threads."""

    def __init__(self, make_store: StoreMaker) -> None:
        self._make_store = make_store
        self._stores: dict[str, ObjectStore] = {}
        self._lock = threading.Lock()
        self._verifier: Verifier | None = None
        self.settings: RegionSettings | None = None

    def remember(self, meta: Mapping[str, str]) -> None:
        """Take up what an earlier process knew."""
        known = meta.get(_META)
        if known is not None:
            self.settings = RegionSettings.model_validate_json(known)

    def adopt(self, credentials: Credentials) -> SetMeta | None:
        """Take up what enrolment or renewal said; return what is to be journalled of it, if it is new."""
        self._verifier = Verifier(credentials.trust.verify_keys)
        if credentials.settings == self.settings:
            return None
        with self._lock:
            self.settings = credentials.settings
            self._stores.clear()
        return SetMeta(_META, credentials.settings.model_dump_json())

    def verifier(self) -> Verifier:
        """Return the current keys. Raises `IdentityError` before the first enrolment."""
        if self._verifier is None:
            raise IdentityError("there are no keys to verify work items with yet")
        return self._verifier

    def bundles(self) -> ObjectStore:
        """Return the bucket of DAG code. Raises `StoreError` while the region is not known."""
        return self._store(self._known().bundle_bucket)

    def logs(self) -> ObjectStore:
        """Return the bucket of logs. Raises `StoreError` while the region is not known."""
        return self._store(self._known().log_bucket)

    def warm(self) -> None:
        """Make the clients before the first task waits for them: that takes about a second."""
        self.bundles()
        self.logs()

    def _store(self, bucket: str) -> ObjectStore:
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = self._make_store(self._known(), bucket)
            return self._stores[bucket]

    def _known(self) -> RegionSettings:
        if self.settings is None:
            raise StoreError("the region's buckets are not known before the first enrolment", transient=True)
        return self.settings
