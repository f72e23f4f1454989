"""A role: who may take it, and the few things that it may do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, TerraformResource, aws
from airbridge.infra.constructs.checks import accept
from airbridge.infra.constructs.iam.policy import Statement, policy_document
from airbridge.infra.exceptions import PolicyError

#: Limits of IAM: characters of a managed policy without white space, and managed policies of a role (IAM and STS quotas).
MANAGED_POLICY_CHARACTERS = 6144
POLICIES_OF_A_ROLE = 10


@dataclass(frozen=True)
class RoleProps:
    """A role's name, its trust (assume-role statements) and its permissions.

    `managed` puts the permissions into managed policies of the role's own: an inline policy holds 10,240 characters.
    """

    name: str
    description: str
    trust: Sequence[Statement]
    statements: Sequence[Statement] = ()
    max_session_seconds: int = 3600
    managed: bool = False


class Role(Construct):
    """A least-privilege role; its statements are one inline policy, so that they live and die with it."""

    def __init__(self, scope: Construct, id_: str, props: RoleProps) -> None:
        super().__init__(scope, id_)
        self.name_input = props.name
        self.role = aws.iam_role.IamRole(
            self,
            "role",
            name=props.name,
            description=props.description,
            assume_role_policy=policy_document(props.trust),
            max_session_duration=props.max_session_seconds,
        )
        #: The role's policies: what uses the role at once has to wait for them.
        self.policies: list[TerraformResource] = []
        if props.managed:
            for number, statements in enumerate(chunks(props.statements), start=1):
                self._attach(f"policy-{number}", statements)
        elif props.statements:
            self.allow("policy", props.statements)

    @property
    def arn(self) -> str:
        """The role's ARN."""
        return str(self.role.arn)

    @property
    def name(self) -> str:
        """The role's name."""
        return str(self.role.name)

    def _attach(self, id_: str, statements: Sequence[Statement]) -> None:
        policy = aws.iam_policy.IamPolicy(
            self, id_, name=f"{self.name_input}-{id_}", policy=policy_document(statements)
        )
        _accept(policy, statements)
        attachment = aws.iam_role_policy_attachment.IamRolePolicyAttachment(
            self, f"{id_}-attachment", role=self.name, policy_arn=policy.arn
        )
        self.policies.append(attachment)

    def allow(self, id_: str, statements: Sequence[Statement]) -> None:
        """Add a policy to the role."""
        self.policies.append(grant(self, id_, self.name, statements))


def grant(scope: Construct, id_: str, role_name: str, statements: Sequence[Statement]) -> TerraformResource:
    """Give a role, perhaps another stack's, a policy of this scope's, and return the policy."""
    policy: TerraformResource = aws.iam_role_policy.IamRolePolicy(
        scope, id_, name=f"{scope.node.id}-{id_}", role=role_name, policy=policy_document(statements)
    )
    _accept(policy, statements)
    return policy


def chunks(statements: Sequence[Statement], limit: int = MANAGED_POLICY_CHARACTERS) -> list[list[Statement]]:
    """Divide statements among as few policies as their order allows; PolicyError if there would be more than ten."""
    divided: list[list[Statement]] = [[]]
    for statement in statements:
        if divided[-1] and len(policy_document([*divided[-1], statement])) > limit:
            divided.append([])
        divided[-1].append(statement)
    if len(divided) > POLICIES_OF_A_ROLE:
        raise PolicyError(
            f"{len(divided)} managed policies would be needed; a role has {POLICIES_OF_A_ROLE} at most"
        )
    return divided


def _accept(policy: TerraformResource, statements: Sequence[Statement]) -> None:
    for statement in statements:
        for check in statement.accepted_checks:
            accept(policy, check, statement.forced_by_aws)
