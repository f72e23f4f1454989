"""Lengths of names and sizes of values that AWS refuses, at the longest names that an environment may have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import ENVIRONMENTS, Stacks, read

from airbridge.infra.app import synthesise
from airbridge.infra.settings import Settings

# Characters of the attribute `name` or the like. Sources: "CreateLoadBalancer" and "CreateTargetGroup" (32) of the
# Elastic Load Balancing API, "CreateRole" (64) of IAM, "CreateBucket" (63) of S3, "CreateQueue" (80) of SQS,
# "CreateDBInstance" (63) of RDS, "CreateAutoScalingGroup" (255), "RegisterTaskDefinition" (255) of ECS.
LIMITS: Final = {
    "aws_lb": ("name", 32),
    "aws_lb_target_group": ("name", 32),
    "aws_iam_role": ("name", 64),
    "aws_iam_policy": ("name", 128),
    "aws_s3_bucket": ("bucket", 63),
    "aws_sqs_queue": ("name", 80),
    "aws_db_instance": ("identifier", 63),
    "aws_autoscaling_group": ("name", 255),
    "aws_launch_template": ("name", 128),
    "aws_ecs_task_definition": ("family", 255),
    "aws_cloudwatch_metric_alarm": ("alarm_name", 255),
    "aws_security_group": ("name", 255),
}


@pytest.fixture(scope="module")
def longest(tmp_path_factory: pytest.TempPathFactory) -> Stacks:
    """Stacks of an environment whose names are as long as they may be."""
    folder: Path = tmp_path_factory.mktemp("longest")
    name = "a" * 9
    text = (ENVIRONMENTS / "dev.toml").read_text().replace('name = "dev"', f'name = "{name}"')
    for region in ("us-east-1", "eu-west-1"):
        text = text.replace(region, {"us-east-1": "ap-southeast-1", "eu-west-1": "ap-southeast-2"}[region])
    (folder / f"{name}.toml").write_text(text.replace('name = "default"', f'name = "{"p" * 20}"'))
    return read(synthesise(Settings(name, folder), folder / "out"))


def test_names_are_short_enough(longest: Stacks) -> None:
    """The longest name of an environment, a region and a pool still gives names that AWS accepts."""
    for kind, (attribute, limit) in LIMITS.items():
        found = list(resources(longest, kind))
        assert found, kind
        for path, resource in found:
            assert len(resource[attribute]) <= limit, f"{path}: {resource[attribute]}"


def test_user_data_is_small_enough(longest: Stacks) -> None:
    """User data has at most 16 KiB before it is encoded."""
    for path, template in resources(longest, "aws_launch_template"):
        assert len(template["user_data"]) * 3 / 4 <= 16_384, path
