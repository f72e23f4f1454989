"""Buckets of stored XComs: each in the AWS region that has it, and none for a worker behind the gateway."""

from __future__ import annotations

from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest

from airbridge.control_plane.gateway.work.stored_xcoms import StoredXComs
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import StoreError
from airbridge.edge_worker.transfer.store import GatewayStore

CATALOGUE = """
home_region = "factory-7"
[[region]]
name = "factory-7"
aws_region = "eu-central-1"
log_bucket = "logs"
bundle_bucket = "code"
xcom_inline_bytes = 1
[[region.pool]]
queue_url = "http://q/a"
"""


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")


def test_a_free_name_has_its_bucket_in_aws() -> None:
    """The bucket of a place with a name of its own is opened, and its URL signed, in the AWS region that the catalogue names."""
    store = StoredXComs.of(Catalogue.parse(CATALOGUE)).store("factory-7")
    assert store is not None
    url = store.read_url("xcoms/a", 60)
    assert urlsplit(url).hostname == "logs.s3.eu-central-1.amazonaws.com"
    assert "%2Feu-central-1%2Fs3%2F" in url


@pytest.mark.parametrize("ask", [lambda s: s.read_url("k", 1), lambda s: s.write_url("k", 1, {})])
def test_no_url_behind_the_gateway(ask: object) -> None:
    """A worker that reaches nothing but the gateway has no URL to a bucket, and says so."""
    with pytest.raises(StoreError, match="reach no bucket"):
        ask(GatewayStore(Mock(), "logs"))  # type: ignore[operator]
