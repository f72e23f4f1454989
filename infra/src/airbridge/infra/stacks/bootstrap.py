"""The bootstrap stack: deployed once by a person, before the pipelines can deploy anything."""

from __future__ import annotations

from airbridge.infra.cdk import Construct
from airbridge.infra.constructs.bootstrap import ISSUER, PipelineProps, Pipelines, State, StateProps
from airbridge.infra.iam import pipeline_roles
from airbridge.infra.stacks.base import Deployment, Stack, state_alias

NAME = "bootstrap"


class BootstrapStack(Stack):
    """State bucket and key, and the pipelines' roles."""

    def __init__(self, scope: Construct, deployment: Deployment) -> None:
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
                roles=pipeline_roles.roles(environment, state.bucket.arn, state.key.arn),
                boundary=self.names.boundary,
                boundary_statements=pipeline_roles.boundary(environment),
                provider_arn=(
                    f"arn:aws:iam::{environment.account}:oidc-provider/{ISSUER}"
                    if environment.shares_account
                    else None
                ),
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
