"""Environment of the platform's processes: the user's basic variables, without any that would configure them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from airbridge.control_plane.local import ports
from airbridge.control_plane.local.services import aws
from airbridge.core.task_options import CERTIFICATE_VARIABLES

_INHERITED: Final = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    *CERTIFICATE_VARIABLES,
)
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
# Programs differ in which of the two they read.
_NO_PROXY: Final = ("NO_PROXY", "no_proxy")
# Variables with which uv and pip are configured to install from an index.
_INDEX: Final = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_FIND_LINKS", "PIP_INDEX_URL", "PIP_FIND_LINKS")


def base(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of the user's environment that every process inherits.

    It has no AIRFLOW__ and no AWS_ variable: a shell configured for a real deployment must not leak into this one. It has no
    proxy either: the processes' requests are to each other.
    """
    return {name: environ[name] for name in _INHERITED if name in environ} | {"PYTHONUNBUFFERED": "1"}


def proxies(environ: Mapping[str, str], direct: Iterable[str]) -> dict[str, str]:
    """Return the variables of an HTTP proxy, for processes that fetch packages: empty without one.

    This host and the hosts `direct` are reached without it.
    """
    found = {name: environ[name] for name in _PROXIES if environ.get(name)}
    if not found:
        return {}
    given = ",".join(filter(None, (environ.get(name) for name in _NO_PROXY))).split(",")
    hosts = dict.fromkeys(host.strip() for host in (*given, ports.LOOPBACK, "localhost", *direct))
    return found | dict.fromkeys(_NO_PROXY, ",".join(filter(None, hosts)))


def package_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the Airflow settings with which DAGs' packages come from the index that uv, and so `make`, is configured with.

    Credentials in a URL are left out: they would be in the configuration of processes that need none.
    """
    index = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    found = {"package_index": index, "package_find_links": environ.get("UV_FIND_LINKS")}
    return {f"airbridge.{name}": _without_credentials(value) for name, value in found.items() if value}


def task_packages(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which tasks install from the same index: PythonVirtualenvOperator does.

    Credentials in a URL are left out, as in `package_settings`.
    """
    return {name: _without_credentials(environ[name]) for name in _INDEX if environ.get(name)}


def _without_credentials(urls: str) -> str:
    """Remove the credentials from one URL, or from a list separated by blanks or commas."""
    return re.sub(r"//[^/\s]*@", "//", urls)


def without_aws(region: str) -> dict[str, str]:
    """Return variables that keep boto3 from finding any credentials."""
    return {
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def aws_variables(region: str) -> dict[str, str]:
    """Return the variables of boto3. The endpoint is in each component's own settings."""
    return {**aws.CREDENTIALS, "AWS_DEFAULT_REGION": region, "AWS_EC2_METADATA_DISABLED": "true"}
