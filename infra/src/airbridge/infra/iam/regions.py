"""Permissions of the control plane's roles in the edge regions, by the pattern of their resources' names.

A policy that names each region's resources outgrows the 10,240 characters of a role's inline policies at about 14 regions.
Names are the environment's own (`Names`), and every bucket has to be of this account.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from airbridge.infra.constructs.iam.policy import Statement
from airbridge.infra.environment import Site
from airbridge.infra.names import Names

LOG_PREFIX = "logs/"
XCOM_PREFIX = "xcoms/"
_BUNDLES = "bundles/"


def statements(names: Names, service: str, sites: Sequence[Site] = ()) -> tuple[Statement, ...]:
    """Return what a service may do in every region and at these sites; nothing for a service that has no business there."""
    if service == "scheduler":
        return _send_work(names)
    if service == "api-server":
        return _read_logs(names)
    if service == "triggerer":
        return _write_trigger_logs(names)
    if service == "dag-processor":
        return _publish_bundles(names)
    if service == "gateway":
        return (*_publish_bundles(names), *_grant_xcoms(names), *_serve_sites(names, sites))
    return ()


def _serve_sites(names: Names, sites: Sequence[Site]) -> Iterator[Statement]:
    """Receive and write for workers of sites, and assume the roles of those who get credentials. Code is read as in every region."""
    if any(site.transport == "gateway" for site in sites):
        yield Statement(
            sid="ReceiveForSites",
            actions=("sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:ReceiveMessage"),
            resources=(names.queue_arn("*", f"{names.base}-{names.site('*')}"),),
        )
        yield Statement(
            sid="DeadLettersAreForPeople",
            effect="Deny",
            actions=("sqs:DeleteMessage", "sqs:ReceiveMessage"),
            resources=(names.queue_arn("*", names.dead_letter_queue("*")),),
        )
        actions = ("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject")
        yield from _objects(names, "SiteLogs", actions, names.log_bucket(names.site("*")), f"{LOG_PREFIX}*")
    if any(site.is_brokered or pool.task_statements for site in sites for pool in site.pools):
        yield Statement(
            sid="BrokerCredentials",
            actions=("sts:AssumeRole",),
            resources=(f"arn:aws:iam::{names.account}:role/{names.base}-{names.site('*')}",),
        )


def _send_work(names: Names) -> tuple[Statement, ...]:
    """Send work items, and look at how deep the queues are. Nothing but a queue itself fills its dead letters."""
    return (
        Statement(
            sid="SendWork",
            actions=("sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SendMessage"),
            resources=(names.queue_arn("*", f"{names.base}-*"),),
        ),
        Statement(
            sid="DeadLettersAreForQueues",
            effect="Deny",
            actions=("sqs:SendMessage",),
            resources=(names.queue_arn("*", names.dead_letter_queue("*")),),
        ),
        _use_keys(names, "EncryptWork", "kms:Decrypt", "kms:GenerateDataKey"),
    )


def _read_logs(names: Names) -> tuple[Statement, ...]:
    """Read task logs."""
    return (
        *_objects(names, "Logs", ("s3:GetObject",), names.log_bucket("*"), f"{LOG_PREFIX}*"),
        _use_keys(names, "DecryptLogs", "kms:Decrypt"),
    )


def _grant_xcoms(names: Names) -> tuple[Statement, ...]:
    """Sign URLs to stored XComs, and delete those that nothing refers to. The keys are used as for snapshots."""
    return _objects(
        names, "XComs", ("s3:DeleteObject", "s3:GetObject"), names.log_bucket("*"), f"{XCOM_PREFIX}*"
    )


def _write_trigger_logs(names: Names) -> tuple[Statement, ...]:
    """Upload the logs of triggers, to the home region."""
    bucket = names.log_bucket(names.home_region)
    return (
        Statement(
            sid="WriteLogs", actions=("s3:PutObject",), resources=(f"arn:aws:s3:::{bucket}/{LOG_PREFIX}*",)
        ),
        _use_keys(names, "EncryptLogs", "kms:Decrypt", "kms:GenerateDataKey"),
    )


def _publish_bundles(names: Names) -> tuple[Statement, ...]:
    """Publish DAG snapshots, and read them."""
    bucket = names.bundle_bucket("*")
    return (
        *_objects(names, "Snapshots", ("s3:GetObject", "s3:PutObject"), bucket, f"{_BUNDLES}*"),
        # The home region's bucket notes which region still lacks a snapshot, until it has it.
        Statement(
            sid="SettleDebts",
            actions=("s3:DeleteObject",),
            resources=(f"arn:aws:s3:::{bucket}/{_BUNDLES}*/owed/*",),
            conditions=_own(names),
        ),
        _use_keys(names, "EncryptSnapshots", "kms:Decrypt", "kms:GenerateDataKey"),
    )


def _objects(
    names: Names, what: str, actions: Sequence[str], bucket: str, prefix: str
) -> tuple[Statement, ...]:
    return (
        Statement(
            sid=f"Use{what}",
            actions=actions,
            resources=(f"arn:aws:s3:::{bucket}/{prefix}",),
            conditions=_own(names),
        ),
        Statement(
            sid=f"List{what}",
            actions=("s3:ListBucket",),
            resources=(f"arn:aws:s3:::{bucket}",),
            conditions={"StringLike": {"s3:prefix": prefix}, **_own(names)},
        ),
    )


def _own(names: Names) -> dict[str, dict[str, str]]:
    """Anybody can create a bucket of a name that fits the pattern."""
    return {"StringEquals": {"aws:ResourceAccount": names.account}}


def _use_keys(names: Names, sid: str, *actions: str) -> Statement:
    """Return the use of the regions' keys, which have ids that no name gives, by their aliases.

    https://docs.aws.amazon.com/kms/latest/developerguide/alias-authorization.html
    """
    # Three parts, as regions have: the control plane's own key and the state's have fewer.
    return Statement(
        sid=sid,
        actions=actions,
        resources=(f"arn:aws:kms:*:{names.account}:key/*",),
        conditions={"ForAnyValue:StringLike": {"kms:ResourceAliases": f"alias/{names.base}-*-*-?"}},
    )
