"""AWS credentials that a gateway hands to a worker of a pool whose credentials are brokered."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from airbridge.core.wire.message import Message


class AwsCredentialsRequest(Message):
    """Request for credentials of the caller's own pool. The certificate decides which these are."""

    #: Those of the pool's tasks, not the worker's own.
    for_tasks: bool = False


class AwsCredentials(Message):
    """Short-lived credentials of a role of a pool."""

    access_key_id: str = Field(min_length=16, max_length=128)
    secret_access_key: str = Field(repr=False, min_length=1, max_length=256)
    session_token: str = Field(repr=False, min_length=1, max_length=8192)
    #: Seconds until they expire, from the answer on: the worker's clock may be wrong.
    expires_in: float = Field(gt=0, allow_inf_nan=False)
    expires_at: AwareDatetime
