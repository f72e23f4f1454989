"""Role of a site's pool: the rights of the credentials that the gateway gives its workers, before it narrows each session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from airbridge.infra.cdk import Construct
from airbridge.infra.constructs.iam.policy import Statement, Trust
from airbridge.infra.constructs.iam.role import Role, RoleProps


@dataclass(frozen=True)
class SiteRoleProps:
    """What the workers of a site's pool use, and the gateway's role, which alone may assume this one."""

    name: str
    gateway_role_arn: str
    region: str
    queue_arn: str
    bundle_bucket_arn: str
    log_bucket_arn: str
    key_arn: str
    stores_xcoms: bool


def site_role(scope: Construct, id_: str, props: SiteRoleProps) -> Role:
    """Create the role, with the rights of docs/how-to/run-a-worker-anywhere.md#credentials-from-the-gateway."""
    trust = Trust(principals={"AWS": props.gateway_role_arn}).statement()
    return Role(
        scope,
        id_,
        RoleProps(
            name=props.name,
            description="Workers of one pool of a site, by credentials from the gateway",
            trust=(trust,),
            statements=tuple(_rights(props)),
        ),
    )


def _rights(props: SiteRoleProps) -> Iterator[Statement]:
    yield Statement(
        sid="ReceiveWork",
        actions=(
            "sqs:ChangeMessageVisibility",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
        ),
        resources=(props.queue_arn,),
    )
    yield Statement(
        sid="ReadSnapshots", actions=("s3:GetObject",), resources=(f"{props.bundle_bucket_arn}/bundles/*",)
    )
    # Without them S3 answers 403 for an object that does not exist.
    yield _list("ListSnapshots", props.bundle_bucket_arn, "bundles/*")
    yield _list("ListLogs", props.log_bucket_arn, "logs/*")
    yield Statement(
        sid="WriteLogs",
        actions=("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:PutObject"),
        resources=(f"{props.log_bucket_arn}/logs/*",),
    )
    if props.stores_xcoms:
        yield Statement(
            sid="StoreXComs",
            actions=("s3:GetObject", "s3:PutObject"),
            resources=(f"{props.log_bucket_arn}/xcoms/*",),
        )
    services = [f"{service}.{props.region}.amazonaws.com" for service in ("s3", "sqs")]
    yield Statement(
        sid="UseKey",
        actions=("kms:Decrypt", "kms:GenerateDataKey"),
        resources=(props.key_arn,),
        conditions={"StringEquals": {"kms:ViaService": services}},
    )


def _list(sid: str, bucket_arn: str, prefix: str) -> Statement:
    return Statement(
        sid=sid,
        actions=("s3:ListBucket",),
        resources=(bucket_arn,),
        conditions={"StringLike": {"s3:prefix": prefix}},
    )
