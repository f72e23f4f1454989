"""A bucket with versions can be emptied, whatever its keys, and also while its versioning is suspended.

Terraform suspends a bucket's versioning, lists its versions with encoded keys, and deletes these. moto takes such a bucket for one
that never had versions, deletes all of a key at once and fails where a delete marker is among them; and it lists keys as they
are, so that a plus sign in one is read as a space.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from moto.core.responses import ActionResult
from moto.s3.models import S3Backend
from moto.s3.responses import S3Response


def apply() -> None:
    """Close the gaps."""
    _deletions()
    _listings()


def _deletions() -> None:
    backend: Any = S3Backend
    delete = backend.delete_object

    def one_version(
        self: Any, bucket_name: str, key_name: str, version_id: str | None = None, bypass: bool = False
    ) -> Any:
        bucket = self.get_bucket(bucket_name)
        status = getattr(bucket, "versioning_status", None)
        if version_id is None or status != "Suspended":
            return delete(self, bucket_name, key_name, version_id, bypass)
        bucket.versioning_status = "Enabled"
        try:
            return delete(self, bucket_name, key_name, version_id, bypass)
        finally:
            bucket.versioning_status = status

    backend.delete_object = one_version


def _listings() -> None:
    responses: Any = S3Response
    list_versions = responses.list_object_versions

    def encoded(self: Any) -> Any:
        if self.querystring.get("encoding-type", [None])[0] == "url":
            serialized = self.serialized
            self.serialized = lambda result: serialized(_encode(result))
        return list_versions(self)

    responses.list_object_versions = encoded


def _encode(listed: Any) -> ActionResult:
    result: dict[str, Any] = listed.result
    for one in (*result["Versions"], *result["DeleteMarkers"]):
        one["Key"] = quote(one["Key"])
    return ActionResult({**result, "EncodingType": "url"})
