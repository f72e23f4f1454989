"""Roles of tasks in the catalogue: where they are of use, and what they must not be."""

from __future__ import annotations

import pytest

from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError

WORKERS = "arn:aws:iam::123456789012:role/workers"
TASKS = "arn:aws:iam::123456789012:role/tasks"


def catalogue(way: str, task_role: str = TASKS, role: str = WORKERS) -> Catalogue:
    return Catalogue.parse(
        f"""
        home_region = "eu-central-1"
        [[region]]
        name = "eu-central-1"
        log_bucket = "home-logs"
        bundle_bucket = "home-dags"
        [[region.pool]]
        queue_url = "https://sqs.eu-central-1.amazonaws.com/123456789012/home"
        role_arn = "arn:aws:iam::123456789012:role/home"
        [[region]]
        name = "factory-7"
        aws_region = "eu-central-1"
        log_bucket = "factory-logs"
        bundle_bucket = "factory-dags"
        {way}
        [[region.pool]]
        queue_url = "https://sqs.eu-central-1.amazonaws.com/123456789012/factory"
        role_arn = "{role}"
        task_role_arn = "{task_role}"
        """
    )


@pytest.mark.parametrize("way", ['credentials = "brokered"', 'transport = "gateway"'])
def test_places_without_aws_have_them(way: str) -> None:
    """Where hosts bring no credentials, tasks may have those of a role."""
    region = catalogue(way).region("factory-7")
    assert region is not None
    assert region.pools[0].task_role_arn == TASKS


def test_hosts_of_aws_bring_their_own() -> None:
    """A pool whose hosts have credentials of their own cannot have a second source of them."""
    with pytest.raises(ConfigurationError, match="here the hosts bring the credentials of tasks"):
        catalogue("")


@pytest.mark.parametrize(
    ("role", "pool"),
    [(WORKERS, "default@factory-7"), ("arn:aws:iam::123456789012:role/home", "default@eu-central-1")],
)
def test_role_of_workers_is_not_for_tasks(role: str, pool: str) -> None:
    """Tasks with the role of any pool's workers could receive its work, write its logs, or join as one."""
    with pytest.raises(ConfigurationError, match=f"is the role of the workers of pool {pool}"):
        catalogue('credentials = "brokered"', task_role=role)


def test_arn_that_is_none_is_refused() -> None:
    """The error names the region, the pool and the key."""
    with pytest.raises(ConfigurationError, match=r"region 'factory-7'.* task_role_arn"):
        catalogue('transport = "gateway"', task_role="tasks")
