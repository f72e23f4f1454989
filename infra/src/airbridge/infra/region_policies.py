"""What the control plane's roles may do in an edge region."""

from __future__ import annotations

from collections.abc import Sequence

from airbridge.infra.constructs.policy import Statement

_BUNDLES = "bundles/"


def scheduler(queue_arns: Sequence[str], dead_letter_arn: str, key_arn: str) -> tuple[Statement, ...]:
    """Sends work items, and looks at how deep the queues are."""
    return (
        Statement(sid="SendWork", actions=("sqs:SendMessage",), resources=queue_arns),
        Statement(
            sid="LookAtQueues",
            actions=("sqs:GetQueueAttributes", "sqs:GetQueueUrl"),
            resources=(*queue_arns, dead_letter_arn),
        ),
        Statement(sid="EncryptWork", actions=("kms:Decrypt", "kms:GenerateDataKey"), resources=(key_arn,)),
    )


def api_server(log_bucket_arn: str, prefix: str, key_arn: str) -> tuple[Statement, ...]:
    """Reads task logs."""
    return (
        Statement(sid="ReadLogs", actions=("s3:GetObject",), resources=(f"{log_bucket_arn}/{prefix}*",)),
        Statement(
            sid="ListLogs",
            actions=("s3:ListBucket",),
            resources=(log_bucket_arn,),
            conditions={"StringLike": {"s3:prefix": f"{prefix}*"}},
        ),
        Statement(sid="DecryptLogs", actions=("kms:Decrypt",), resources=(key_arn,)),
    )


def dag_processor(bundle_bucket_arn: str, key_arn: str) -> tuple[Statement, ...]:
    """Publishes DAG snapshots, and reads those that it parses."""
    return _publish_bundles(bundle_bucket_arn, key_arn)


def gateway(bundle_bucket_arn: str, key_arn: str) -> tuple[Statement, ...]:
    """Publishes DAG snapshots that operators push. It has no business with the queues."""
    return _publish_bundles(bundle_bucket_arn, key_arn)


def _publish_bundles(bucket_arn: str, key_arn: str) -> tuple[Statement, ...]:
    return (
        Statement(
            sid="PublishSnapshots",
            actions=("s3:GetObject", "s3:PutObject"),
            resources=(f"{bucket_arn}/{_BUNDLES}*",),
        ),
        # The home region's bucket notes which region still lacks a snapshot, until it has it.
        Statement(
            sid="SettleDebts", actions=("s3:DeleteObject",), resources=(f"{bucket_arn}/{_BUNDLES}*/owed/*",)
        ),
        Statement(
            sid="ListSnapshots",
            actions=("s3:ListBucket",),
            resources=(bucket_arn,),
            conditions={"StringLike": {"s3:prefix": f"{_BUNDLES}*"}},
        ),
        Statement(
            sid="EncryptSnapshots", actions=("kms:Decrypt", "kms:GenerateDataKey"), resources=(key_arn,)
        ),
    )
