"""A catalogue for tests: two regions, one of them with a GPU pool; one data set is in both."""

from __future__ import annotations

from airbridge.core.catalogue import Catalogue

TOML = """
home_region = "us-east-1"

[[region]]
name = "us-east-1"
log_bucket = "us-logs"
bundle_bucket = "us-dags"
data = ["s3://us-data", "s3://shared/both"]
[[region.pool]]
queue_url = "http://127.0.0.1:5000/1/us"

[[region]]
name = "eu-west-1"
log_bucket = "eu-logs"
bundle_bucket = "eu-dags"
data = ["s3://eu-data/", "s3://shared/both", "s3://shared/eu"]
[[region.pool]]
name = "default"
queue_url = "http://127.0.0.1:5000/1/eu"
[[region.pool]]
name = "gpu"
queue_url = "http://127.0.0.1:5000/1/eu-gpu"
"""


def catalogue() -> Catalogue:
    return Catalogue.parse(TOML)
