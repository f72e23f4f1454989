"""Checks of sites: the names of their buckets, queues and roles are free, or this environment's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from airbridge.infra.environment import Site
from airbridge.infra.preflight.finding import Account, Finding, failed, ok

_NONE = {
    "404",
    "NoSuchBucket",
    "NoSuchTagSet",
    "NoSuchEntity",
    "QueueDoesNotExist",
    "AWS.SimpleQueueService.NonExistentQueue",
}
_FOREIGN = {"403", "AccessDenied", "Forbidden"}
_REMEDY = "remove it, `terraform import` it into {stack}, or rename the site"


def names(account: Account) -> Iterator[Finding]:
    """Nothing but this environment's stacks has made what a site's stack is to make."""
    for site in account.environment.sites:
        taken = [
            *_buckets(account, site),
            *_queues(account, site),
            *_roles(account, site),
        ]
        where = f"{site.name} beside {site.beside}"
        for detail, remedy in taken:
            yield failed("site", where, detail, remedy)
        if not taken:
            yield ok("site", where, "its names are free, or its own")


def _buckets(account: Account, site: Site) -> Iterator[tuple[str, str]]:
    s3, names = account.client("s3", site.beside), account.environment.names
    own = names.site(site.name)
    for name in (names.log_bucket(own), names.bundle_bucket(own)):
        try:
            s3.head_bucket(Bucket=name)
            tags = {tag["Key"]: tag["Value"] for tag in s3.get_bucket_tagging(Bucket=name)["TagSet"]}
        except ClientError as error:
            code = str(error.response["Error"]["Code"])
            if code in _FOREIGN:
                yield f"the bucket {name} is another account's, or closed to you", "rename the site"
                continue
            if code not in _NONE:
                raise
            if code != "NoSuchTagSet":
                continue
            tags = {}
        yield from _problem(account, site, f"the bucket {name}", tags)


def _queues(account: Account, site: Site) -> Iterator[tuple[str, str]]:
    sqs, names = account.client("sqs", site.beside), account.environment.names
    own = names.site(site.name)
    for name in (names.dead_letter_queue(own), *(names.queue(own, pool.name) for pool in site.pools)):
        try:
            url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
        except ClientError as error:
            if error.response["Error"]["Code"] not in _NONE:
                raise
            continue
        yield from _problem(
            account, site, f"the queue {name}", sqs.list_queue_tags(QueueUrl=url).get("Tags", {})
        )


def _roles(account: Account, site: Site) -> Iterator[tuple[str, str]]:
    iam, names = account.client("iam", account.home), account.environment.names
    made = [names.site_role(site.name, pool.name) for pool in site.pools if site.is_brokered]
    made += [names.site_task_role(site.name, pool.name) for pool in site.pools if pool.task_statements]
    for name in made:
        try:
            found = iam.get_role(RoleName=name)["Role"]
        except ClientError as error:
            if error.response["Error"]["Code"] not in _NONE:
                raise
            continue
        tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", ())}
        yield from _problem(account, site, f"the role {name}", tags)


def _problem(account: Account, site: Site, what: str, tags: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield that a resource is not of the stack that is to make it: a deployment that was begun leaves its tags."""
    stack = f"edge-{site.beside}"
    if tags.get("airbridge:stack") == stack and tags.get("airbridge:environment") == account.environment.name:
        return
    yield f"{what} is there, and {stack} has not made it", _REMEDY.format(stack=stack)
