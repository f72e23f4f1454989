"""Work that boto3 repeats for each call with the same result, done once.

A worker writes one small log a task, so the fixed cost of a call matters more than its bytes.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any, Final

# Parameters of S3's endpoint rules that no rule reads. With them each new key makes botocore evaluate all rules again
# (0.25 ms), although the endpoint depends on bucket, region and configuration alone.
UNREAD_PARAMETERS: Final = ("Key", "Prefix", "CopySource")


def user_agent() -> str:
    """Return a User-Agent for boto3's configuration. boto3 otherwise composes its own twice for each call."""
    return (
        f"AirBridge/{version('airbridge-core')} Boto3/{version('boto3')} Python/{platform.python_version()}"
    )


def remember_endpoints(client: Any) -> Any:
    """Return an S3 client, changed so that it works out the endpoint of a bucket once, not for each key."""
    # botocore has no setting for it. A version without these attributes is left as it is.
    resolver = getattr(client, "_ruleset_resolver", None)
    parameters = getattr(resolver, "_param_definitions", {})
    for name in UNREAD_PARAMETERS:
        parameters.pop(name, None)
    return client
