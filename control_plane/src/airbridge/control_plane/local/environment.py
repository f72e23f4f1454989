"""The environment of the platform's processes: what they need of the user's, and nothing that would configure them."""

from __future__ import annotations

from collections.abc import Mapping

from airbridge.control_plane.local import aws

_INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "SSL_CERT_FILE",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
)


def base(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of the user's environment that every process gets.

    No AIRFLOW__ and no AWS_ variable is among it: a shell set up for a real deployment must not leak into this one.
    """
    return {name: environ[name] for name in _INHERITED if name in environ} | {"PYTHONUNBUFFERED": "1"}


def without_aws(region: str) -> dict[str, str]:
    """Return what keeps boto3 from finding credentials anywhere."""
    return {
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def aws_variables(region: str) -> dict[str, str]:
    """Return what boto3 needs besides the endpoint, which each component has from its own settings."""
    return {**aws.CREDENTIALS, "AWS_DEFAULT_REGION": region, "AWS_EC2_METADATA_DISABLED": "true"}
