"""Resource of a call: its ARN, as IAM's policies name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moto.autoscaling.models import autoscaling_backends

_Arn = Callable[[str, str, Mapping[str, Any]], str | None]


def resource_arn(service: str, region: str, account: str, parameters: Mapping[str, Any]) -> str:
    """Return the ARN of a call's resource, `*` where the service takes none or it cannot be determined."""
    find = _FINDERS.get(service)
    return (find and find(region, account, parameters)) or "*"


def call_action(service: str, action: str) -> str:
    """The IAM action of a call; a batch on a queue needs the right to its single calls."""
    return action.removesuffix("Batch") if service == "sqs" else action


def s3_action(method: str, key: str, action: str, query: Mapping[str, Any]) -> str:
    """The IAM action of an S3 call; S3 is the one service whose calls and actions differ throughout."""
    plain = not set(query) - {
        "list-type",
        "prefix",
        "delimiter",
        "max-keys",
        "x-id",
        "partNumber",
        "uploadId",
        "uploads",
        "continuation-token",
        "encoding-type",
        "marker",
        "start-after",
        "fetch-owner",
        "versionId",
    }
    if key and plain:
        if method == "DELETE" and "uploadId" in query:
            return "AbortMultipartUpload"
        return {"GET": "GetObject", "HEAD": "GetObject", "DELETE": "DeleteObject"}.get(method, "PutObject")
    if method in {"GET", "HEAD"} and plain:
        return "ListBucket" if action != "ListBuckets" else "ListAllMyBuckets"
    return _S3_ACTIONS.get(action, action)


def _sqs(region: str, account: str, parameters: Mapping[str, Any]) -> str | None:
    name = parameters.get("QueueName") or str(parameters.get("QueueUrl", "")).rstrip("/").rsplit("/", 1)[-1]
    return f"arn:aws:sqs:{region}:{account}:{name}" if name else None


def _named(template: str, *keys: str) -> _Arn:
    def find(region: str, account: str, parameters: Mapping[str, Any]) -> str | None:
        for key in keys:
            value = parameters.get(key)
            if value:
                text = str(value)
                return (
                    text
                    if text.startswith("arn:")
                    else template.format(region=region, account=account, name=text)
                )
        return None

    return find


def _group(region: str, account: str, parameters: Mapping[str, Any]) -> str | None:
    """A group's ARN. A call on an instance (TerminateInstanceInAutoScalingGroup, SetInstanceHealth) is one on the instance's group."""
    name = parameters.get("AutoScalingGroupName") or _group_of(region, account, parameters.get("InstanceId"))
    return (
        f"arn:aws:autoscaling:{region}:{account}:autoScalingGroup:*:autoScalingGroupName/{name}"
        if name
        else None
    )


def _group_of(region: str, account: str, instance_id: str | None) -> str | None:
    groups: Mapping[str, Any] = autoscaling_backends[account][region].autoscaling_groups
    for name, group in groups.items():
        if instance_id in {state.instance.id for state in group.instance_states}:
            return name
    return None


def _iam(_region: str, account: str, parameters: Mapping[str, Any]) -> str | None:
    for key, kind in (("RoleName", "role"), ("InstanceProfileName", "instance-profile")):
        if parameters.get(key):
            return f"arn:aws:iam::{account}:{kind}/{parameters[key]}"
    found = parameters.get("OpenIDConnectProviderArn") or parameters.get("PolicyArn")
    if found:
        return str(found)
    url = str(parameters.get("Url", "")).removeprefix("https://")
    return f"arn:aws:iam::{account}:oidc-provider/{url}" if url else None


_FINDERS: Mapping[str, _Arn] = {
    "sqs": _sqs,
    "iam": _iam,
    "kms": _named("arn:aws:kms:{region}:{account}:key/{name}", "KeyId", "TargetKeyId"),
    "logs": _named("arn:aws:logs:{region}:{account}:log-group:{name}:*", "logGroupName", "resourceArn"),
    "secretsmanager": _named("arn:aws:secretsmanager:{region}:{account}:secret:{name}", "SecretId", "Name"),
    "ssm": _named("arn:aws:ssm:{region}:{account}:parameter{name}", "Name"),
    "sns": _named("arn:aws:sns:{region}:{account}:{name}", "TopicArn", "ResourceArn", "Name"),
    "ecr": _named("arn:aws:ecr:{region}:{account}:repository/{name}", "repositoryName", "resourceArn"),
    "sts": _named("{name}", "RoleArn"),
    "autoscaling": _group,
}
_S3_ACTIONS = {
    "GetBucketEncryption": "GetEncryptionConfiguration",
    "PutBucketEncryption": "PutEncryptionConfiguration",
    "DeleteBucketEncryption": "PutEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "DeleteBucketLifecycle": "PutLifecycleConfiguration",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
    "DeletePublicAccessBlock": "PutBucketPublicAccessBlock",
    "DeleteBucketOwnershipControls": "PutBucketOwnershipControls",
    "GetBucketCors": "GetBucketCORS",
    "GetBucketReplication": "GetReplicationConfiguration",
    "GetBucketAccelerateConfiguration": "GetAccelerateConfiguration",
    "GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
    "DeleteObjects": "DeleteObject",
    "ListObjectVersions": "ListBucketVersions",
    "ListObjects": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "HeadBucket": "ListBucket",
}
