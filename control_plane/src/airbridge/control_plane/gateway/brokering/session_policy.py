"""Session policies: the rights of one pool's brokered credentials, whatever its role has beyond them.

AWS grants what both the role's policies and the session policy allow. A role that several pools share is safe to share so.
"""

from __future__ import annotations

import json
from typing import Any, Final

from airbridge.core.regions import Pool, Region, Residency, queue_owner

#: STS refuses longer ones.
LONGEST: Final = 2048
RECEIVE: Final = (
    "sqs:ChangeMessageVisibility",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
    "sqs:ReceiveMessage",
)


def session_policy(region: Region, pool: Pool) -> str:
    """Return the policy of a pool's credentials, as JSON: its queue, and its region's code and logs."""
    assert pool.role_arn is not None  # noqa: S101 - the catalogue requires it of such a pool
    partition = pool.role_arn.split(":")[1]
    statements = [
        _allow(RECEIVE, _queue_arn(partition, region, pool)),
        _allow("s3:GetObject", f"arn:{partition}:s3:::{region.bundle_bucket}/bundles/*"),
        # Without them S3 answers 403 for an object that does not exist.
        _list(f"arn:{partition}:s3:::{region.bundle_bucket}", "bundles/*"),
        _list(f"arn:{partition}:s3:::{region.log_bucket}", "logs/*"),
        _allow(
            ("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:PutObject"),
            f"arn:{partition}:s3:::{region.log_bucket}/logs/*",
        ),
        # Of buckets and queues that KMS encrypts; the role names the keys.
        {
            **_allow(("kms:Decrypt", "kms:GenerateDataKey"), "*"),
            "Condition": {"StringLike": {"kms:ViaService": ["s3.*", "sqs.*"]}},
        },
    ]
    if _stores_xcoms(region, pool):
        xcoms = f"arn:{partition}:s3:::{region.log_bucket}/xcoms/*"
        statements.append(_allow(("s3:GetObject", "s3:PutObject"), xcoms))
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, separators=(",", ":"))


def _queue_arn(partition: str, region: Region, pool: Pool) -> str:
    owner = queue_owner(pool.queue_url)
    assert owner is not None  # noqa: S101 - the catalogue requires it of such a pool
    account, name = owner
    return f"arn:{partition}:sqs:{region.aws}:{account}:{name}"


def _stores_xcoms(region: Region, pool: Pool) -> bool:
    stored = pool.xcom_inline_bytes if pool.xcom_inline_bytes is not None else region.xcom_inline_bytes
    return stored is not None or region.residency is Residency.STRICT


def _allow(actions: str | tuple[str, ...], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resource}


def _list(bucket: str, prefix: str) -> dict[str, Any]:
    return {**_allow("s3:ListBucket", bucket), "Condition": {"StringLike": {"s3:prefix": prefix}}}
