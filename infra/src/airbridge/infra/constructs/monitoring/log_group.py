"""A log group: encrypted, and kept for a stated time."""

from __future__ import annotations

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.checks import accept


def log_group(
    scope: Construct, id_: str, name: str, key_arn: str, days: int
) -> aws.cloudwatch_log_group.CloudwatchLogGroup:
    """An encrypted log group whose entries are kept for `days`."""
    group = aws.cloudwatch_log_group.CloudwatchLogGroup(
        scope, id_, name=name, kms_key_id=key_arn, retention_in_days=days
    )
    if days < 365:
        accept(
            group, "CKV_AWS_338", f"{days} days is what operations need; the audit trail is in the database"
        )
    return group
