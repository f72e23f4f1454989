"""IAM statements: least privilege, checked when they are made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airbridge.infra.cdk import literal
from airbridge.infra.exceptions import PolicyError


@dataclass(frozen=True)
class Statement:
    """Statement of an IAM policy: actions on resources.

    An action is always named in full. `Resource: "*"` is refused unless `forced_by_aws` gives the reason why there is no
    narrower way to write it; the reason stays here, beside the statement.
    """

    sid: str
    actions: Sequence[str]
    resources: Sequence[str]
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    principals: Mapping[str, Sequence[str] | str] | None = None
    effect: str = "Allow"
    forced_by_aws: str = ""
    # A scanner's checks that fail for what AWS forces; `forced_by_aws` is the reason that is given.
    accepted_checks: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.effect == "Allow":
            self._require_narrow()

    def _require_narrow(self) -> None:
        wild = [action for action in self.actions if "*" in action]
        if wild:
            raise PolicyError(f"{self.sid}: {', '.join(wild)} is a wildcard; name each action in full")
        if "*" in self.resources and self.principals is None and not self.forced_by_aws:
            raise PolicyError(
                f"{self.sid}: the resource is *; name it, or say in forced_by_aws why AWS takes none"
            )

    def document(self) -> dict[str, Any]:
        """The statement as IAM reads it."""
        written: dict[str, Any] = {"Sid": self.sid, "Effect": self.effect}
        if self.principals is not None:
            written["Principal"] = dict(self.principals)
        written["Action"] = list(self.actions) if len(self.actions) > 1 else self.actions[0]
        written["Resource"] = list(self.resources) if len(self.resources) > 1 else self.resources[0]
        if self.conditions:
            written["Condition"] = {operator: dict(test) for operator, test in self.conditions.items()}
        return written


class EndpointStatement(Statement):
    """Statement of the policy of a VPC endpoint: it limits what passes, and grants nobody anything."""

    def _require_narrow(self) -> None:
        """Accept wildcards: rights come from roles."""


def policy_document(statements: Iterable[Statement]) -> str:
    """The statements as one policy, in JSON. IAM's own variables, as in `${aws:PrincipalTag/team}`, reach it as they are."""
    document = {"Version": "2012-10-17", "Statement": [each.document() for each in statements]}
    return literal(json.dumps(document))


def tls_only(actions: str, resources: Sequence[str]) -> Statement:
    """A refusal of every call that does not come over TLS."""
    return Statement(
        sid="TlsOnly",
        effect="Deny",
        actions=(actions,),
        resources=resources,
        principals={"AWS": "*"},
        conditions={"Bool": {"aws:SecureTransport": "false"}},
    )


def assumed_by_service(service: str, account: str | None = None) -> Statement:
    """Trust in an AWS service, acting for this account only where the service names the account that it acts for."""
    conditions = {"StringEquals": {"aws:SourceAccount": account}} if account else {}
    return Trust(principals={"Service": service}, conditions=conditions).statement()


@dataclass(frozen=True)
class Trust:
    """Trust policy of a role."""

    principals: Mapping[str, Sequence[str] | str]
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    action: str = "sts:AssumeRole"

    def statement(self) -> Statement:
        """The trust as a statement of a role's assume-role policy."""
        return _TrustStatement(
            sid="Trust",
            actions=(self.action,),
            resources=(),
            principals=self.principals,
            conditions=self.conditions,
        )


class _TrustStatement(Statement):
    """A trust policy has no resource: it is about the role that it stands on."""

    def document(self) -> dict[str, Any]:
        return {
            "Sid": self.sid,
            "Effect": self.effect,
            "Principal": dict(self.principals or {}),
            "Action": self.actions[0],
            **(
                {"Condition": {key: dict(test) for key, test in self.conditions.items()}}
                if self.conditions
                else {}
            ),
        }
