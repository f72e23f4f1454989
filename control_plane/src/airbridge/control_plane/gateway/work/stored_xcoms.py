"""URLs to stored XComs, for tasks of other regions and DAGs. They are signed here; nothing of a value passes the gateway."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from airbridge.control_plane._airflow import Answer
from airbridge.control_plane.gateway.auth.residency import StoredRead
from airbridge.core.aws.object_store import ObjectStore, connect
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import StoreError
from airbridge.core.regions import Region
from airbridge.core.residency import xcoms

_JSON: Final = {"content-type": "application/json"}


def region_store(region: Region) -> ObjectStore:
    """Return the bucket with a region's XComs."""
    return connect(region.aws, region.log_bucket, endpoint_url=region.endpoint_url)


@dataclass
class StoredXComs:
    """Buckets of all regions, opened when they are first needed. Safe for use by many threads."""

    regions: Mapping[str, Region] = field(default_factory=dict)
    make: Callable[[Region], ObjectStore] = region_store
    _stores: dict[str, ObjectStore] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, catalogue: Catalogue) -> StoredXComs:
        """Return the buckets of a catalogue's regions."""
        return cls({region.name: region for region in catalogue.regions})

    def store(self, region: str) -> ObjectStore | None:
        """Return a region's bucket; None if there is no such region."""
        with self._lock:
            known = self.regions.get(region)
            if known is not None and region not in self._stores:
                self._stores[region] = self.make(known)
            return self._stores.get(region)

    def answer(self, read: StoredRead) -> Answer:
        """Return the answer to a read that is granted: the URL, valid for `xcoms.URL_SECONDS`."""
        try:
            store = self.store(read.region)
            if store is None:
                return _problem(404, f"there is no region {read.region[:64]!r}")
            url = store.read_url(read.object.key, xcoms.URL_SECONDS)
        except StoreError as error:
            return _problem(503 if error.transient else 500, str(error))
        found = {"url": url, "headers": {}, "region": read.region, "object": read.object.key}
        return Answer(200, _JSON, json.dumps(found))


def _problem(status: int, message: str) -> Answer:
    return Answer(status, _JSON, json.dumps({"detail": {"reason": "stored_xcom", "message": message}}))
