"""Base of the wire models, and the types that many of them have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# A region, pool or worker name: a DNS label, so that it fits a SPIFFE path, a queue name and a metric label.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]

# Way of a worker to its queue and buckets: with AWS credentials of its own, or through the gateway.
Transport = Literal["direct", "gateway"]

# Source of the AWS credentials of a pool's workers: the host's own, or the gateway.
CredentialSource = Literal["host", "brokered"]

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

# Numbers that the ledger's columns take: PostgreSQL's integer and bigint.
MOST_COUNTED = 2**31 - 1
Count = Annotated[int, Field(ge=0, le=MOST_COUNTED)]
Size = Annotated[int, Field(ge=0, le=2**63 - 1)]

# A version of a distribution or of Python.
VersionText = Annotated[str, Field(max_length=128)]


class Message(BaseModel):
    """Base of all wire models: immutable, and tolerant of fields added by a newer version."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
