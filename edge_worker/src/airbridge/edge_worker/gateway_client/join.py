"""Join methods: the proofs by which a worker gets its first identity."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from airbridge.core.protocol import (
    JoinByAwsIam,
    JoinByBoundKey,
    JoinByKubernetes,
    JoinByOidc,
    JoinByToken,
)
from airbridge.core.wire.joining import LONGEST_TOKEN
from airbridge.edge_worker.exceptions import IdentityError
from airbridge.edge_worker.gateway_client.bound_key import BoundKeyJoin
from airbridge.edge_worker.settings import JoinMethod, WorkerSettings

# Signed with the STS request: the gateway's host, so that it serves no other gateway.
AUDIENCE_HEADER = "X-AirBridge-Audience"

# Signed with the STS request: the certificate request's digest, so that it serves no other key.
CSR_HEADER = "X-AirBridge-Csr-Sha256"

Proof = JoinByToken | JoinByAwsIam | JoinByBoundKey | JoinByOidc | JoinByKubernetes

_STS_BODY = "Action=GetCallerIdentity&Version=2011-06-15"


class Join(Protocol):
    """Makes the proof for one certificate request."""

    async def proof(self, csr_pem: str) -> Proof:
        """Return the proof. Raises `IdentityError` if it cannot be made."""

    async def accepted(self) -> None:
        """Note that the last proof has led to an identity. Raises `IdentityError` if it cannot be noted."""


def join_method(settings: WorkerSettings) -> Join:
    """Return the join method of the settings."""
    if settings.join_method is JoinMethod.AWS_IAM:
        return AwsIamJoin(settings.region, urlsplit(settings.gateway_url).hostname or "")
    if settings.join_method is JoinMethod.BOUND_KEY:
        return BoundKeyJoin(settings)
    if settings.join_token_file is None:
        raise IdentityError("join_token_file is not set")
    return TokenJoin(settings.join_token_file, _BY_TOKEN[settings.join_method])


_BY_TOKEN: Mapping[JoinMethod, type[JoinByToken | JoinByOidc | JoinByKubernetes]] = {
    JoinMethod.TOKEN: JoinByToken,
    JoinMethod.OIDC: JoinByOidc,
    JoinMethod.KUBERNETES: JoinByKubernetes,
}


class TokenJoin:
    """A token in a file: a join token, or an issuer's. Read anew each time, so that it can be replaced; never kept."""

    def __init__(
        self, path: Path, proof: type[JoinByToken | JoinByOidc | JoinByKubernetes] = JoinByToken
    ) -> None:
        self._path = path
        self._proof = proof

    async def proof(self, csr_pem: str) -> Proof:  # noqa: ARG002 - a token vouches for any key
        """See `Join.proof`."""
        try:
            token = (await asyncio.to_thread(self._path.read_text)).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise IdentityError(f"join_token_file {self._path} cannot be read: {error}") from error
        if not token:
            raise IdentityError(f"join_token_file {self._path} is empty; it must hold the join token")
        if len(token) > LONGEST_TOKEN:
            raise IdentityError(
                f"join_token_file {self._path} has {len(token)} characters; a token has at most {LONGEST_TOKEN}"
            )
        return self._proof(token=token)

    async def accepted(self) -> None:
        """See `Join.accepted`."""


class AwsIamJoin:
    """A signed STS GetCallerIdentity request, which the gateway forwards: AWS itself attests the role."""

    def __init__(self, region: str, audience: str) -> None:
        self._region = region
        self._audience = audience

    async def proof(self, csr_pem: str) -> JoinByAwsIam:
        """See `Join.proof`."""
        return await asyncio.to_thread(self._sign, csr_pem)

    async def accepted(self) -> None:
        """See `Join.accepted`."""

    def _sign(self, csr_pem: str) -> JoinByAwsIam:
        import boto3  # slow to import, and only this join method needs it here
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError

        try:
            session = boto3.session.Session(region_name=self._region)
            url = f"{session.client('sts').meta.endpoint_url.rstrip('/')}/"
            credentials = session.get_credentials()
        except BotoCoreError as error:
            raise IdentityError(f"join_method aws_iam: {error}") from error
        if credentials is None:
            raise IdentityError(
                "join_method aws_iam: this host has no AWS credentials (no instance profile?)"
            )
        headers = {
            "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
            AUDIENCE_HEADER: self._audience,
            CSR_HEADER: hashlib.sha256(csr_pem.encode()).hexdigest(),
        }
        request = AWSRequest(method="POST", url=url, data=_STS_BODY, headers=headers)
        SigV4Auth(credentials.get_frozen_credentials(), "sts", self._region).add_auth(request)
        signed = {name: str(value) for name, value in request.headers.items()}
        # botocore signs the Host header without setting it; the gateway forwards exactly these headers.
        signed.setdefault("Host", urlsplit(url).netloc)
        return JoinByAwsIam(url=url, headers=signed, body=_STS_BODY)
