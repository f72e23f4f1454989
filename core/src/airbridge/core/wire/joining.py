"""Proofs by which a worker gets its first identity."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from airbridge.core.wire.message import Message


class JoinByToken(Message):
    """A join token: one use or counted, scoped to region and pool, with a TTL."""

    method: Literal["token"] = "token"
    token: str = Field(repr=False)


class JoinByAwsIam(Message):
    """A signed STS GetCallerIdentity request that the gateway sends on and judges the answer of."""

    method: Literal["aws_iam"] = "aws_iam"
    url: str
    headers: dict[str, str] = Field(repr=False, max_length=32)
    body: str


class RejoinProof(Message):
    """Proof of the rejoin key of a host, see `airbridge.core.wire.rejoin`."""

    public_key: str = Field(max_length=64)
    signature: str = Field(max_length=128)


class JoinByBoundKey(Message):
    """Proof of a key that is bound to the worker's name, with the count of the host's joins, see `airbridge.core.wire.rejoin`.

    `attempt` is the same in each repetition of one join. `token` binds the key at first use; later it is not looked at.
    """

    method: Literal["bound_key"] = "bound_key"
    public_key: str = Field(max_length=64)
    counter: int = Field(ge=1, le=2**62)
    attempt: str = Field(pattern=r"^[0-9a-f]{32}$")
    signature: str = Field(max_length=128)
    token: str | None = Field(default=None, repr=False, max_length=256)


# Longest token of an issuer.
LONGEST_TOKEN: Final = 16 * 1024


class JoinByOidc(Message):
    """A token of an OpenID Connect issuer that the control plane trusts."""

    method: Literal["oidc"] = "oidc"
    token: str = Field(repr=False, max_length=LONGEST_TOKEN)


class JoinByKubernetes(Message):
    """A pod's projected token of its service account."""

    method: Literal["kubernetes"] = "kubernetes"
    token: str = Field(repr=False, max_length=LONGEST_TOKEN)
