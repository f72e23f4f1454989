from __future__ import annotations

import pytest
from botocore.exceptions import ClientError
from tests.support.moto import Moto


def test_regions_are_kept_apart(moto: Moto) -> None:
    """A bucket made in one region is served with that region's name."""
    moto.bucket("moto-test-eu", "eu-west-1")
    head = moto.client("s3", "eu-west-1").head_bucket(Bucket="moto-test-eu")
    assert head["BucketRegion"] == "eu-west-1"


def test_conditional_writes_are_honoured(moto: Moto) -> None:
    """A put with a stale ETag is refused, as S3 does."""
    bucket = moto.bucket("moto-test-conditional")
    s3 = moto.client("s3")
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch=first["ETag"])
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=first["ETag"])
