"""Names of resources: every name in AWS is made here, from the environment's, the region's and the pool's.

Names are deterministic, so that two stacks can refer to the same resource without depending on each other.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "airbridge"


@dataclass(frozen=True)
class Names:
    """The names of one environment in one account."""

    environment: str
    account: str
    home_region: str

    @property
    def base(self) -> str:
        """`airbridge-<environment>`, the start of every name."""
        return f"{PREFIX}-{self.environment}"

    @property
    def state_bucket(self) -> str:
        """The bucket that holds Terraform's state."""
        return f"{self.base}-state-{self.account}"

    def role(self, purpose: str) -> str:
        """A role of the control plane or of the pipelines."""
        return f"{self.base}-{purpose}"

    def role_arn(self, purpose: str) -> str:
        """The ARN of `role(purpose)`."""
        return f"arn:aws:iam::{self.account}:role/{self.role(purpose)}"

    @property
    def boundary(self) -> str:
        """Permissions boundary of the roles that pipelines make."""
        return f"{self.base}-boundary"

    @property
    def boundary_arn(self) -> str:
        """ARN of `boundary`."""
        return f"arn:aws:iam::{self.account}:policy/{self.boundary}"

    def worker_role(self, region: str, pool: str) -> str:
        """The role of one pool's workers."""
        return f"{self.base}-{region}-{pool}-worker"

    def worker_role_arn(self, region: str, pool: str) -> str:
        """The ARN of `worker_role(region, pool)`: who it is may join as a worker of that pool."""
        return f"arn:aws:iam::{self.account}:role/{self.worker_role(region, pool)}"

    def task_role(self, region: str, pool: str) -> str:
        """The role of the tasks of one pool."""
        return f"{self.base}-{region}-{pool}-task"

    def task_role_arn(self, region: str, pool: str) -> str:
        """The ARN of `task_role(region, pool)`."""
        return f"arn:aws:iam::{self.account}:role/{self.task_role(region, pool)}"

    def site(self, site: str) -> str:
        """The place of a region's name in the names of a site's resources: no region of AWS begins so."""
        return f"site-{site}"

    def site_role(self, site: str, pool: str) -> str:
        """The role whose credentials the gateway gives the workers of a site's pool."""
        return f"{self.base}-{self.site(site)}-{pool}"

    def site_task_role(self, site: str, pool: str) -> str:
        """The role whose credentials the gateway gives the tasks of a site's pool."""
        return f"{self.site_role(site, pool)}-tasks"

    def site_role_arn(self, site: str, pool: str) -> str:
        """The ARN of `site_role(site, pool)`."""
        return f"arn:aws:iam::{self.account}:role/{self.site_role(site, pool)}"

    def queue(self, region: str, pool: str) -> str:
        """A pool's work queue."""
        return f"{self.base}-{region}-{pool}"

    def dead_letter_queue(self, region: str) -> str:
        """A region's dead-letter queue. Two dashes: no pool's name can end in it."""
        return f"{self.base}-{region}--dead-letters"

    def queue_arn(self, region: str, name: str) -> str:
        """The ARN of a queue in a region."""
        return f"arn:aws:sqs:{region}:{self.account}:{name}"

    def queue_url(self, region: str, name: str) -> str:
        """Return the URL of a queue in AWS."""
        return f"https://sqs.{region}.amazonaws.com/{self.account}/{name}"

    def log_bucket(self, region: str) -> str:
        """A region's log bucket."""
        return f"{self.base}-{region}-logs-{self.account}"

    def bundle_bucket(self, region: str) -> str:
        """A region's DAG snapshot bucket."""
        return f"{self.base}-{region}-bundles-{self.account}"

    def repository(self, image: str) -> str:
        """An ECR repository."""
        return f"{self.base}/{image}"

    def image(self, region: str, image: str, digest: str) -> str:
        """An image by digest, in a region's registry."""
        return f"{self.account}.dkr.ecr.{region}.amazonaws.com/{self.repository(image)}@{digest}"
