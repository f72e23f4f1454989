"""Resources of the emulator's calls, by which IAM's policies decide on them."""

from __future__ import annotations

import boto3
import pytest
from moto import mock_aws

from airbridge.infra.emulator.targets import resource_arn

REGION, ACCOUNT = "eu-west-1", "123456789012"


def test_call_on_an_instance_is_one_on_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may end its own group's instances and no other's: the request names the instance alone."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        ec2 = boto3.client("ec2", region_name=REGION)
        scaling = boto3.client("autoscaling", region_name=REGION)
        subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        scaling.create_launch_configuration(
            LaunchConfigurationName="any", ImageId="ami-12c6146b", InstanceType="m7g.large"
        )
        scaling.create_auto_scaling_group(
            AutoScalingGroupName="pool",
            LaunchConfigurationName="any",
            MinSize=1,
            MaxSize=1,
            VPCZoneIdentifier=subnet,
        )
        [instance] = scaling.describe_auto_scaling_instances()["AutoScalingInstances"]
        found = resource_arn("autoscaling", REGION, ACCOUNT, {"InstanceId": instance["InstanceId"]})
        assert found.endswith(":autoScalingGroupName/pool")
        assert "*" == resource_arn("autoscaling", REGION, ACCOUNT, {"InstanceId": "i-0"})
