"""Reading the pools of a region from EC2 Auto Scaling (moto)."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import boto3
import pytest
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
