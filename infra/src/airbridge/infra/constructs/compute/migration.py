"""Database migrations as a one-off task that gates the services."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, DataResource, ITerraformDependable, LocalExecProvisioner
from airbridge.infra.constructs.compute.service import Platform, Task


@dataclass(frozen=True)
class MigrationProps:
    """Properties of the migration: network, triggers of another run, and the Python that starts it."""

    security_group_id: str
    trigger: str
    #: What the task needs and does not name: the network's ways out.
    wait_for: Sequence[ITerraformDependable]
    python: str = "python"


class Migration(Construct):
    """Runs the task once for every new image, from where Terraform runs, and waits for it.

    The services depend on it. Each also waits by itself for the schema that its image expects, so that a service
    which ECS restarts between an image and its migration does not start too early.
    """

    def __init__(
        self, scope: Construct, id_: str, platform: Platform, task: Task, props: MigrationProps
    ) -> None:
        super().__init__(scope, id_)
        arguments = (
            f"--region {shlex.quote(platform.region)} --cluster {platform.cluster_arn}"
            f" --task-definition {task.definition.arn} --subnets {','.join(platform.subnet_ids)}"
            f" --security-group {props.security_group_id}{' --public-address' if platform.public_addresses else ''}"
        )
        self.run = DataResource(
            self,
            "run",
            triggers_replace={"image": props.trigger},
            depends_on=list(props.wait_for),
            provisioners=[
                LocalExecProvisioner(
                    type="local-exec", command=f"{props.python} -m airbridge.infra.tools.migrate {arguments}"
                )
            ],
        )
