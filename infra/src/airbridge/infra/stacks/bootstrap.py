"""The bootstrap stack: deployed once by a person, before the pipelines can deploy anything."""

from __future__ import annotations

from typing import Any

from airbridge.infra import pipeline_policies
from airbridge.infra.constructs.bootstrap import PipelineProps, PipelineRole, Pipelines, State, StateProps
from airbridge.infra.stacks.base import Deployment, Stack, state_alias

NAME = "bootstrap"


class BootstrapStack(Stack):
    """State bucket and key, and the pipelines' roles."""

    def __init__(self, scope: Any, deployment: Deployment) -> None:
        environment = deployment.environment
        super().__init__(scope, NAME, deployment, environment.home_region)
        state = State(
            self,
            "state",
            StateProps(
                bucket=self.names.state_bucket,
                alias=state_alias(environment),
                account=environment.account,
                protect=deployment.protect,
            ),
        )
        pipelines = Pipelines(
            self,
            "pipelines",
            PipelineProps(
                repository=environment.pipelines.repository,
                deployment_environment=environment.pipelines.deployment_environment,
                roles={
                    purpose: PipelineRole(
                        self.names.role(f"pipeline-{purpose}"), description, tuple(statements)
                    )
                    for purpose, (description, statements) in pipeline_policies.roles(
                        environment, state.bucket.arn, state.key.arn
                    ).items()
                },
            ),
        )
        self.outputs(
            {
                "state_bucket": (state.bucket.name, "The bucket that keeps Terraform's state"),
                "pipeline_role_arns": (
                    {purpose: role.arn for purpose, role in pipelines.roles.items()},
                    "What the pipelines' jobs assume, by purpose",
                ),
            }
        )
