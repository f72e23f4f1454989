"""Proofs by which a worker gets its first identity."""

from __future__ import annotations

from typing import Literal

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
    """Proof of the rejoin key of a host, see `airbridge.core.rejoin`."""

    public_key: str = Field(max_length=64)
    signature: str = Field(max_length=128)
