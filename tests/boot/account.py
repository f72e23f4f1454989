"""The emulated account: clients of its administrator, sessions of its roles, and IAM that is enforced."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.config import Config

_ADMINISTRATOR = {"AccessKeyId": "test", "SecretAccessKey": "test"}


@dataclass
class Account:
    """The account behind an emulator."""

    url: str
    home: str
    _clients: dict[tuple[str, str], Any] = field(default_factory=dict)

    def client(self, service: str, region: str | None = None) -> Any:
        """Return a client of the administrator."""
        key = service, region or self.home
        if key not in self._clients:
            self._clients[key] = self._client(*key, _ADMINISTRATOR)
        return self._clients[key]

    def session(self, role_arn: str, name: str) -> Session:
        """Return a session of a role, as AWS's services take one for what they start."""
        sts = self.client("sts")
        taken = sts.assume_role(RoleArn=role_arn, RoleSessionName=name)["Credentials"]
        return Session(self, role_arn, taken)

    def enforce(self) -> None:
        """Enforce IAM from now on."""
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", b"0", headers, method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def _client(self, service: str, region: str, keys: dict[str, str]) -> Any:
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys.get("SessionToken"),
            config=Config(retries={"total_max_attempts": 2}, s3={"addressing_style": "path"}),
        )


@dataclass(frozen=True)
class Session:
    """A role's session."""

    account: Account
    role_arn: str
    keys: dict[str, Any]

    def client(self, service: str, region: str | None = None) -> Any:
        """Return a client under the role."""
        return self.account._client(service, region or self.account.home, self.keys)  # its other half

    @property
    def document(self) -> dict[str, str]:
        """Return the credentials as metadata services write them."""
        until = self.keys["Expiration"]
        expires = until.astimezone(UTC) if isinstance(until, datetime) else datetime.now(UTC)
        return {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "RoleArn": self.role_arn,
            "LastUpdated": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "AccessKeyId": self.keys["AccessKeyId"],
            "SecretAccessKey": self.keys["SecretAccessKey"],
            "Token": self.keys["SessionToken"],
            "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
