"""Checks of who is asking, and of what the account allows at all: credentials, regions, service-linked roles."""

from __future__ import annotations

from collections.abc import Iterator

from botocore.exceptions import BotoCoreError, ClientError

from airbridge.infra.preflight.finding import Account, Finding, failed, ok

#: Services that make a role of their own in an account at their first use. A first deployment races with that, and a role
#: that may not create them is refused. Their roles lie below the path `/aws-service-role/<service>/`: "Create a
#: service-linked role" of the IAM user guide.
LINKED_ROLES = (
    "autoscaling.amazonaws.com",
    "ecs.amazonaws.com",
    "elasticloadbalancing.amazonaws.com",
    "rds.amazonaws.com",
    "spot.amazonaws.com",
)
_OPTED_IN = {"opt-in-not-required", "opted-in"}


def credentials(account: Account) -> Iterator[Finding]:
    """The credentials work, and are those of the environment's account."""
    wanted = account.environment.account
    try:
        caller = account.client("sts", account.home).get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        yield failed(
            "credentials",
            wanted,
            f"they cannot be used: {error}",
            "sign in, as with `aws sso login`, and set AWS_PROFILE; AWS must be reachable",
        )
        return
    if caller["Account"] != wanted:
        yield failed(
            "credentials",
            wanted,
            f"they are of the account {caller['Account']} ({caller['Arn']})",
            f"use credentials of {wanted}, or correct `account` in the environment file",
        )
        return
    yield ok("credentials", wanted, str(caller["Arn"]))


def regions(account: Account) -> Iterator[Finding]:
    """Every region is there, and enabled in the account."""
    answer = account.client("ec2", account.home).describe_regions(AllRegions=True)
    status = {region["RegionName"]: region.get("OptInStatus", "") for region in answer["Regions"]}
    for name in account.regions:
        if name not in status:
            yield failed(
                "region",
                name,
                "AWS lists no such region for this account",
                "correct the name in the environment file",
            )
        elif status[name] not in _OPTED_IN:
            yield failed(
                "region",
                name,
                f"is {status[name]}",
                f"aws account enable-region --region-name {name} (minutes to hours)",
            )
        else:
            yield ok("region", name, status[name])


def linked_roles(account: Account) -> Iterator[Finding]:
    """The service-linked roles are there: some services refuse the very first request while theirs is being made."""
    pages = (
        account.client("iam", account.home)
        .get_paginator("list_roles")
        .paginate(PathPrefix="/aws-service-role/")
    )
    there = {str(role["Path"]) for page in pages for role in page["Roles"]}
    for service in LINKED_ROLES:
        if f"/aws-service-role/{service}/" in there:
            yield ok("service-linked role", service, "is there")
        else:
            yield failed(
                "service-linked role",
                service,
                "has none in this account",
                f"aws iam create-service-linked-role --aws-service-name {service}",
            )
