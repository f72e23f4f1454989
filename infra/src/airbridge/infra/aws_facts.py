"""Facts about AWS that no emulator has, each with its source; where none is named, it is unverified.

They age: `tests/infra/aws_rules` compares the stacks with them, and a deployment that AWS refuses is a reason to read
the source again and to write the day down.
"""

from __future__ import annotations

#: Releases of the ECS-optimized AMI of Amazon Linux 2023, newest first.
#: Source: CHANGELOG.md of github.com/aws/amazon-ecs-ami, as of 2026-08-21.
ECS_AMI_RELEASES = (
    "20260820",
    "20260813",
    "20260805",
    "20260729",
    "20260727",
    "20260721",
    "20260714",
    "20260710",
    "20260708",
    "20260707",
    "20260701",
    "20260629",
    "20260618",
    "20260615",
    "20260609",
)

#: First release of Amazon Linux 2023 whose kernels, 6.1 and 6.12, offer Landlock.
#: https://github.com/landlock-lsm/landlock-lsm.github.io/pull/19 (2026-01-15). Docker's seccomp profile allows its system
#: calls since https://github.com/moby/moby/pull/43199 (2022); that the images' Docker is newer was not read.
LANDLOCK_SINCE = "20250804"

#: Major version of RDS for PostgreSQL. Minor versions are retired about a year after their release, and an instance
#: of a retired one cannot be created: a version in full would break every new deployment one day. 16.8 could not be
#: created any more from 2026-05-01 on, by reports of AWS's announcement; the release calendar itself was not read.
POSTGRES = "16"

#: Destinations of a registry's replication, over all rules: "Private image replication" of the ECR user guide,
#: https://docs.aws.amazon.com/AmazonECR/latest/userguide/replication.html (from memory; not reached).
REPLICATION_DESTINATIONS = 25

#: Zones of regions whose first three are not az1 to az3. Source: moto 5.2.5, which lists the zones of 38 regions (2026).
ZONES = {
    "ap-northeast-1": ("az1", "az2", "az4"),
    "ca-central-1": ("az1", "az2", "az4"),
    "cn-north-1": ("az1", "az2"),
    "us-west-1": ("az1", "az3"),
}
#: Zones in which no endpoint of a service in another region can be, by region. Source: "Considerations" of "Access AWS services through
#: AWS PrivateLink", AWS PrivateLink Guide (a copy, read 2026-11-30): use1-az3, usw1-az2, apne1-az3, apne2-az2 and apne2-az4. For us-east-1
#: also AWS's refusal: "Only the following availability zones are supported for remote access: use1-az1, use1-az2, use1-az6, use1-az4,
#: use1-az5", in https://github.com/chanzuckerberg/cztack/pull/865.
UNLINKED_ZONES = {
    "ap-northeast-1": ("az3",),
    "ap-northeast-2": ("az2", "az4"),
    "us-east-1": ("az3",),
    "us-west-1": ("az2",),
}
_DIRECTIONS = {
    "central": "c",
    "east": "e",
    "gov": "g",
    "north": "n",
    "northeast": "ne",
    "northwest": "nw",
    "south": "s",
    "southeast": "se",
    "southwest": "sw",
    "west": "w",
}

#: Partitions that the stacks are for: they differ in their ARNs alone. Host names and service principals are equal in both
#: ("Service Endpoints" of the AWS GovCloud (US) User Guide; from memory). That PrivateLink crosses regions in GovCloud is unverified.
PARTITIONS = ("aws", "aws-us-gov")

#: Partitions of isolated regions, by the first two words of a region's name. Source: partitions.json of botocore.
_ISOLATED = {
    ("us", "iso"): "aws-iso",
    ("us", "isob"): "aws-iso-b",
    ("eu", "isoe"): "aws-iso-e",
    ("us", "isof"): "aws-iso-f",
}

#: Families of instances with NVIDIA GPUs. Unverified: compare with "Accelerated computing" in the EC2 instance types.
GPU_FAMILIES = ("g4dn", "g5", "g6", "g6e", "gr6", "p3", "p3dn", "p4d", "p4de", "p5", "p5e", "p5en")

# What a worker calls: its queue, its image, its logs, its keys, its identity, and how operators reach it.
WORKER_ENDPOINTS = (
    "autoscaling",
    "ec2messages",
    "ecr.api",
    "ecr.dkr",
    "kms",
    "logs",
    "secretsmanager",
    "sqs",
    "ssm",
    "ssmmessages",
    "sts",
)
CONTROL_PLANE_ENDPOINTS = ("ecr.api", "ecr.dkr", "kms", "logs", "monitoring", "secretsmanager", "sqs", "sts")


def zones(region: str) -> tuple[str, ...]:
    """Return the zones that are used where none are named."""
    return ZONES.get(region, ("az1", "az2", "az3"))


def unlinked_zones(region: str, home: str) -> tuple[str, ...]:
    """Return the zones of a region in which no endpoint of the gateway can be, which is in the home region."""
    return () if region == home else UNLINKED_ZONES.get(region, ())


def partition(region: str) -> str:
    """Return the partition of a region, by its name: `aws`, `aws-cn`, `aws-us-gov` or one of the isolated ones."""
    area, second = region.split("-")[:2]
    if area == "cn" or second == "gov":
        return "aws-cn" if area == "cn" else "aws-us-gov"
    return _ISOLATED.get((area, second), "aws")


def in_partition(text: str, region: str) -> str:
    """Return a text with its ARNs in a region's partition: the sources write `arn:aws:`, as AWS's documents do."""
    return text.replace("arn:aws:", f"arn:{partition(region)}:")


def zone_id(region: str, zone: str) -> str:
    """Return the id of a zone, which is the same in every account: `euw1-az1` for `az1` of `eu-west-1`.

    Raises ValueError if the region's name does not show it.
    """
    area, *directions, number = region.split("-")
    if unknown := [each for each in directions if each not in _DIRECTIONS]:
        raise ValueError(f"{region} is no region that AWS has: {unknown[0]!r} is no direction")
    return f"{area}{''.join(_DIRECTIONS[each] for each in directions)}{number}-{zone}"


def has_gpu(instance_type: str) -> bool:
    """Return whether instances of a type have NVIDIA GPUs, by the type's family."""
    return instance_type.split(".", 1)[0] in GPU_FAMILIES


def ecs_ami_parameter(architecture: str, *, gpu: bool, release: str = ECS_AMI_RELEASES[0]) -> str:
    """Return the public SSM parameter that holds the id of a release of the ECS-optimized AMI.

    The images' names are as published; that each release has a parameter of its name is unverified. GPU: x86_64 alone.
    """
    base = "/aws/service/ecs/optimized-ami/amazon-linux-2023"
    if gpu:
        return f"{base}/gpu/al2023-ami-ecs-gpu-hvm-2023.0.{release}-kernel-6.1-x86_64-ebs/image_id"
    arm = "arm64/" if architecture == "arm64" else ""
    return f"{base}/{arm}al2023-ami-ecs-hvm-2023.0.{release}-kernel-6.1-{architecture}/image_id"
