"""A role: who may take it, and the few things that it may do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.checks import accept
from airbridge.infra.constructs.policy import Statement, policy_document


@dataclass(frozen=True)
class RoleProps:
    """A role's name, its trust (assume-role statements) and its permissions."""

    name: str
    description: str
    trust: Sequence[Statement]
    statements: Sequence[Statement] = ()
    max_session_seconds: int = 3600


class Role(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """A least-privilege role; its statements are one inline policy, so that they live and die with it."""

    def __init__(self, scope: Construct, id_: str, props: RoleProps) -> None:
        super().__init__(scope, id_)
        self.role = aws.iam_role.IamRole(
            self,
            "role",
            name=props.name,
            description=props.description,
            assume_role_policy=policy_document(props.trust),
            max_session_duration=props.max_session_seconds,
        )
        if props.statements:
            self.allow("policy", props.statements)

    @property
    def arn(self) -> str:
        """The role's ARN."""
        return str(self.role.arn)

    @property
    def name(self) -> str:
        """The role's name."""
        return str(self.role.name)

    def allow(self, id_: str, statements: Sequence[Statement]) -> None:
        """Add a policy to the role."""
        grant(self, id_, self.name, statements)


def grant(scope: Construct, id_: str, role_name: str, statements: Sequence[Statement]) -> None:
    """Give a role, perhaps another stack's, a policy of this scope's."""
    policy = aws.iam_role_policy.IamRolePolicy(
        scope, id_, name=f"{scope.node.id}-{id_}", role=role_name, policy=policy_document(statements)
    )
    for statement in statements:
        for check in statement.accepted_checks:
            accept(policy, check, statement.forced_by_aws)
