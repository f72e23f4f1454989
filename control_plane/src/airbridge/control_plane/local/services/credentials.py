"""Credentials endpoint: returns to each process temporary credentials of its own role, as ECS and EC2 do.

A process has a URL and a token (AWS_CONTAINER_CREDENTIALS_FULL_URI, AWS_CONTAINER_AUTHORIZATION_TOKEN) from which every AWS
SDK fetches and renews credentials. Only this process holds the emulator's administrator key. Before it reports ready it
enables IAM enforcement in the emulator and creates the data buckets.
"""

from __future__ import annotations

import argparse
import hmac
import json
import secrets
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from airbridge.control_plane.local import ports

READY_PATH = "/ready"
ROLE_PATH = "/role"
# Credentials of the account's administrator in the emulator of `make infra-local`.
ADMINISTRATOR = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
SESSION_SECONDS = 3600

# Returns the credentials of a role, in the format of the ECS container credentials endpoint.
Assume = Callable[[str], dict[str, str]]


class Grants(BaseModel):
    """Role ARNs by token. Stored in a file that only its owner may read."""

    model_config = ConfigDict(frozen=True)

    endpoint_url: str
    roles: Mapping[str, str]
    data_buckets: Mapping[str, tuple[str, ...]]

    @classmethod
    def make(
        cls, endpoint_url: str, roles: Iterable[str], data_buckets: Mapping[str, tuple[str, ...]]
    ) -> Grants:
        """Create tokens for these roles."""
        return cls(
            endpoint_url=endpoint_url,
            roles={secrets.token_urlsafe(32): arn for arn in roles},
            data_buckets=data_buckets,
        )

    def token(self, role_arn: str) -> str:
        """Return a role's token. Raises `KeyError`."""
        return {arn: token for token, arn in self.roles.items()}[role_arn]

    def role(self, token: str) -> str | None:
        """Return the role of a token; None for an unknown token."""
        return next(
            (arn for known, arn in self.roles.items() if hmac.compare_digest(known.encode(), token.encode())),
            None,
        )

    def write(self, path: Path) -> None:
        """Write the grants to a file."""
        path.touch(mode=0o600)
        path.write_text(self.model_dump_json(indent=2))


def variables(port: int, token: str, region: str) -> dict[str, str]:
    """Return the environment that gives a process one role, and disables every other source of credentials."""
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{ports.LOOPBACK}:{port}{ROLE_PATH}",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": token,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def assume(endpoint_url: str, role_arn: str) -> dict[str, str]:
    """Assume a role at the emulator; return its credentials in the endpoint's format."""
    import boto3

    sts = boto3.client("sts", region_name="us-east-1", endpoint_url=endpoint_url, **ADMINISTRATOR)
    answer = sts.assume_role(RoleArn=role_arn, RoleSessionName="local", DurationSeconds=SESSION_SECONDS)
    given = answer["Credentials"]
    return {
        "AccessKeyId": given["AccessKeyId"],
        "SecretAccessKey": given["SecretAccessKey"],
        "Token": given["SessionToken"],
        "Expiration": given["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "RoleArn": role_arn,
    }


class Handler(BaseHTTPRequestHandler):
    """Request handler of `ROLE_PATH`, which needs a token, and `READY_PATH`."""

    def __init__(self, *arguments: Any, grants: Grants, assume: Assume, ready: threading.Event) -> None:
        self._grants, self._assume, self._ready = grants, assume, ready
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer one request."""
        if self.path == READY_PATH:
            self._answer(HTTPStatus.OK if self._ready.is_set() else HTTPStatus.SERVICE_UNAVAILABLE, {})
            return
        role = self._grants.role(self.headers.get("Authorization", ""))
        if self.path != ROLE_PATH or role is None:
            self._answer(HTTPStatus.FORBIDDEN, {"message": "this token has no role"})
            return
        self._answer(HTTPStatus.OK, self._assume(role))

    def _answer(self, status: HTTPStatus, body: Mapping[str, str]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: the base class would log every renewal of every process."""


def enforce_iam(endpoint_url: str) -> None:
    """Enable IAM enforcement for every later call of the emulator."""
    request = urllib.request.Request(  # noqa: S310 - the emulator's own address, on loopback
        f"{endpoint_url}/moto-api/reset-auth",
        data=b"0",
        headers={"Content-Type": "text/plain"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - as above
        return


def make_data_buckets(endpoint_url: str, buckets: Mapping[str, tuple[str, ...]]) -> None:
    """Create the data buckets that do not exist yet."""
    import boto3

    for region, names in buckets.items():
        s3 = boto3.client("s3", region_name=region, endpoint_url=endpoint_url, **ADMINISTRATOR)
        there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
        # S3 rejects us-east-1, its default, as a LocationConstraint.
        place: dict[str, Any] = (
            {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        )
        for name in names:
            if name not in there:
                s3.create_bucket(Bucket=name, **place)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grants", type=Path, required=True)
    arguments = parser.parse_args()
    grants = Grants.model_validate_json(arguments.grants.read_bytes())
    ready = threading.Event()
    handler = partial(Handler, grants=grants, assume=partial(assume, grants.endpoint_url), ready=ready)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = ThreadingHTTPServer((ports.LOOPBACK, arguments.port), handler)
    threading.Thread(target=server.serve_forever, name="credentials", daemon=True).start()
    make_data_buckets(grants.endpoint_url, grants.data_buckets)
    enforce_iam(grants.endpoint_url)
    ready.set()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
