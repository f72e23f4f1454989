"""A bucket whose versioning is suspended still has its versions, and gives them up one by one.

Terraform suspends a bucket's versioning before it empties the bucket. moto takes it for a bucket that never had versions
then: it deletes all of a key at once, and fails where a delete marker is among them.
"""

from __future__ import annotations

from typing import Any

from moto.s3.models import S3Backend


def apply() -> None:
    """Close the gap."""
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
