"""Reading the pools of a region from EC2 Auto Scaling (moto)."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from tests.unit.ci.tree import digest

from airbridge.ci.exceptions import CiError
from airbridge.ci.rollout.pools import AutoScalingPools, Pool

REGION = "eu-west-1"
POOLS = AutoScalingPools("dev", {REGION: {"default": None}})


@pytest.fixture(autouse=True)
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        yield


def group(wanted: int, image: str) -> None:
    """Create a pool's group as its stack does: with the version of a launch template."""
    ec2, autoscaling = boto3.client("ec2", REGION), boto3.client("autoscaling", REGION)
    script = f"#!/bin/bash\nAIRBRIDGE_WORKER_POOL=default\nAIRBRIDGE_WORKER_IMAGE_DIGEST={image}\n"
    template = ec2.create_launch_template(
        LaunchTemplateName="template",
        LaunchTemplateData={
            "InstanceType": "m7g.large",
            "ImageId": "ami-12c6146b",
            "UserData": base64.b64encode(script.encode()).decode(),
        },
    )["LaunchTemplate"]
    named = {"LaunchTemplateId": template["LaunchTemplateId"], "Version": "1"}
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName="airbridge-dev-eu-west-1-default",
        MinSize=0,
        MaxSize=4,
        DesiredCapacity=wanted,
        AvailabilityZones=[f"{REGION}a"],
        MixedInstancesPolicy={"LaunchTemplate": {"LaunchTemplateSpecification": named}},
    )


@pytest.mark.parametrize("wanted", [0, 2])
def test_pool_has_capacity_and_digest(wanted: int) -> None:
    """Desired capacity and the digest of the user data, of the version that the group names."""
    group(wanted, digest(2))
    assert [Pool(REGION, "default", wanted, digest(2))] == POOLS(REGION)


def test_capacity_is_set() -> None:
    """A pool gets an instance for its wave; what AWS refuses is the pool's error."""
    group(0, digest(2))
    [idle] = POOLS(REGION)
    POOLS.want(idle, 1)
    assert [Pool(REGION, "default", 1, digest(2))] == POOLS(REGION)


def test_refused_capacity_names_the_pool() -> None:
    """What AWS refuses, as without credentials, is the pool's error."""
    refusing = AutoScalingPools("dev", {}, lambda service, region: Refusing())
    with pytest.raises(CiError, match=r"default@eu-west-1: its capacity cannot be set to 1: .*AccessDenied"):
        refusing.want(Pool(REGION, "default", 0, None), 1)


class Refusing:
    """EC2 Auto Scaling for a role that may not."""

    def set_desired_capacity(self, **_: object) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SetDesiredCapacity")


def test_missing_group_is_named() -> None:
    """The error names the group and the stack that makes it."""
    with pytest.raises(
        CiError, match="no autoscaling group airbridge-dev-eu-west-1-default; deploy edge-eu-west-1"
    ):
        POOLS(REGION)


def test_user_data_without_digest_is_not_the_new_one() -> None:
    """User data that names no digest never counts as the new release."""
    group(0, "none")
    assert [Pool(REGION, "default", 0, None)] == POOLS(REGION)
