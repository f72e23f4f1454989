"""Rules of IAM that no emulator checks, over every policy of the synthesised stacks.

The actions are those of service_reference.json, which names its package and date. The quotas are the IAM user guide's, from
memory: a change of them shows at a deployment.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from tests.infra.conftest import Stacks

REFERENCE: dict[str, dict[str, tuple[list[str], list[str]]]] = json.loads(
    Path(__file__).with_name("service_reference.json").read_text()
)["services"]
#: Quotas: characters without white space.
INLINE_OF_A_ROLE, MANAGED, TRUST, ROLE_NAME = 10_240, 6_144, 2_048, 64
POLICIES = ("aws_iam_role_policy", "aws_iam_policy")

Statement = dict[str, Any]


def resources(stacks: Stacks, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for stack, content in stacks.items():
        for resource in content.get("resource", {}).get(kind, {}).values():
            yield f"{stack}/{resource['//']['metadata']['path']}", resource


def statements(stacks: Stacks) -> Iterator[tuple[str, Statement]]:
    for kind in POLICIES:
        for path, policy in resources(stacks, kind):
            for statement in json.loads(policy["policy"])["Statement"]:
                yield path, statement


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def allowed(stacks: Stacks, role: str) -> list[Statement]:
    """Return the allowing statements of a pipeline's role."""
    found = [
        one for path, one in statements(stacks) if f"/pipelines/{role}/" in path and one["Effect"] == "Allow"
    ]
    assert found
    return found


def actions_of(stacks: Stacks, role: str) -> set[str]:
    return {action for one in allowed(stacks, role) for action in listed(one["Action"])}


@pytest.mark.parametrize("environment", ["prod", "local"])
def test_every_action_exists(environment: str, request: pytest.FixtureRequest) -> None:
    """IAM accepts a misspelt action and never grants it."""
    only_known_actions(request.getfixturevalue(environment))


def only_known_actions(stacks: Stacks) -> None:
    """Fail with every policy that has an action which its service does not know."""
    unknown = set()
    for path, one in statements(stacks):
        for action in listed(one["Action"]):
            service, name = action.split(":")
            if "*" not in name and name not in REFERENCE.get(service, {}):
                unknown.add((path, action))
    assert unknown == set()


def test_unnamed_actions_have_any_resource(prod: Stacks) -> None:
    """An action without resource-level permissions is never granted by a statement that names resources."""
    powerless = set()
    for path, one in statements(prod):
        if one["Effect"] == "Deny" or "*" in listed(one["Resource"]):
            continue
        for action in listed(one["Action"]):
            service, name = action.split(":")
            if "*" not in name and not REFERENCE[service][name][0]:
                powerless.add((path, action))
    assert powerless == set()


def test_policies_fit_quotas(prod: Stacks) -> None:
    """Inline policies are counted for a role together; a managed policy stands alone."""
    inline: Counter[str] = Counter()
    for _, policy in resources(prod, "aws_iam_role_policy"):
        inline[policy["role"]] += _characters(policy["policy"])
    assert [role for role, size in inline.items() if size > INLINE_OF_A_ROLE] == []
    managed = {path: _characters(policy["policy"]) for path, policy in resources(prod, "aws_iam_policy")}
    assert [path for path, size in managed.items() if size > MANAGED] == []
    for path, role in resources(prod, "aws_iam_role"):
        assert len(role["name"]) <= ROLE_NAME, path
        assert _characters(role["assume_role_policy"]) <= TRUST, path


def _characters(document: str) -> int:
    return len(json.dumps(json.loads(document), separators=(",", ":")))


def test_deploy_has_dependent_actions(prod: Stacks) -> None:
    """Actions that a granted action depends on are granted too, unless they belong to a feature that no stack uses."""
    unused = {
        # Flow logs to Firehose, and of ECS clusters.
        *(f"ecs:List{kind}" for kind in ("Clusters", "ContainerInstances", "Services", "TaskDefinitions")),
    }
    granted = actions_of(prod, "deploy")
    missing = {}
    for action in granted:
        service, name = action.split(":")
        if needed := set(REFERENCE[service][name][1]) - granted - unused:
            missing[action] = sorted(needed)
    assert missing == {}


@pytest.mark.parametrize(
    "action",
    [
        "ec2:RunInstances",
        "iam:TagInstanceProfile",
        "iam:CreateServiceLinkedRole",
        "kms:CreateGrant",
        "elasticloadbalancing:ModifyListener",
        "elasticloadbalancing:ModifyTargetGroup",
        "vpce:AllowMultiRegion",
        "rds:CreateDBSnapshot",
    ],
)
def test_deploy_may(prod: Stacks, action: str) -> None:
    """Actions that only AWS requires are granted: an emulator's record of a deployment has none of them."""
    assert action in actions_of(prod, "deploy")


def test_deploy_reaches_managed_database_secret(prod: Stacks) -> None:
    """RDS names the secret of a managed master password `rds!...`, outside of the environment's names."""
    secrets = [
        one for one in allowed(prod, "deploy") if "secretsmanager:CreateSecret" in listed(one["Action"])
    ]
    assert any(
        fnmatchcase("x:secret:rds!db-1", "*" + r.split(":", 5)[-1]) for r in listed(secrets[0]["Resource"])
    )


def test_deploy_cannot_extend_itself(prod: Stacks) -> None:
    """Roles are made within a boundary and passed to named services; the pipelines' own roles are out of reach."""
    by_sid = {one["Sid"]: one for path, one in statements(prod) if "/pipelines/deploy/" in path}
    bounded = by_sid["TerraformBoundedRoles"]
    assert {"iam:CreateRole", "iam:PutRolePolicy", "iam:AttachRolePolicy"} <= set(listed(bounded["Action"]))
    assert bounded["Condition"]["StringEquals"]["iam:PermissionsBoundary"].endswith(
        ":policy/airbridge-prod-boundary"
    )
    elsewhere = {
        a for sid, one in by_sid.items() if sid != "TerraformBoundedRoles" for a in listed(one["Action"])
    }
    assert not {"iam:CreateRole", "iam:PutRolePolicy", "iam:AttachRolePolicy"} & elsewhere
    assert "iam:PassedToService" in by_sid["TerraformPassedRoles"]["Condition"]["StringEquals"]
    denied = by_sid["NotTheBootstrap"]
    assert "Deny" == denied["Effect"]
    for name in ("role/airbridge-prod-pipeline-deploy", "policy/airbridge-prod-boundary"):
        arn = f"arn:aws:iam::{_account(prod)}:{name}"
        assert any(fnmatchcase(arn, pattern) for pattern in listed(denied["Resource"])), name


def _account(stacks: Stacks) -> str:
    return str(stacks["bootstrap"]["provider"]["aws"][0]["allowed_account_ids"][0])


def test_pipelines_read_no_secret(prod: Stacks) -> None:
    """A deployment makes secrets and never knows their values: people and services fill and read them."""
    for role in ("publish", "plan", "deploy"):
        assert not {"secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"} & actions_of(prod, role)


def test_roles_have_the_boundary(prod: Stacks) -> None:
    """Every role of a stack that the pipelines deploy; the bootstrap stack's are a person's."""
    roles = [
        (path, one) for path, one in resources(prod, "aws_iam_role") if not path.startswith("bootstrap/")
    ]
    assert len(roles) > 10
    for path, role in roles:
        assert role.get("permissions_boundary", "").endswith(":policy/airbridge-prod-boundary"), path


def test_boundary_covers_runtime_actions(prod: Stacks) -> None:
    """A boundary that lacks a service takes its permissions away from every role, silently."""
    boundary = next(one for path, one in resources(prod, "aws_iam_policy") if path.endswith("/boundary"))
    services = {action.split(":")[0] for action in json.loads(boundary["policy"])["Statement"][0]["Action"]}
    used = {
        action.split(":")[0]
        for path, one in statements(prod)
        if not path.startswith("bootstrap/")
        for action in listed(one["Action"])
    }
    assert used - services == set()
    assert not {"iam", "organizations", "account"} & services


def test_plan_only_reads(prod: Stacks) -> None:
    """Code of a pull request runs with the plan's role: it writes no state and reads no parameter of others."""
    reads = ("BatchGet", "Describe", "Get", "Head", "List")
    assert {a for a in actions_of(prod, "plan") if not a.split(":")[1].startswith(reads)} == {"kms:Decrypt"}
    parameters = [r for one in allowed(prod, "plan") for r in listed(one["Resource"]) if ":ssm:" in r]
    assert parameters
    assert all("parameter/airbridge/prod/" in r or "::parameter/aws/service/" in r for r in parameters)


def test_pipeline_roles_trust_their_jobs(prod: Stacks) -> None:
    """A job's OIDC subject names the environment that the workflow gives it, and a rollout lasts for hours."""
    roles = {
        path.split("/pipelines/")[1].split("/")[0]: one
        for path, one in resources(prod, "aws_iam_role")
        if "/pipelines/" in path
    }
    subjects = {
        purpose: json.loads(role["assume_role_policy"])["Statement"][0]["Condition"]["StringEquals"][
            "token.actions.githubusercontent.com:sub"
        ].rsplit(":", 1)[1]
        for purpose, role in roles.items()
    }
    assert {"publish": "release", "plan": "prod-plan", "deploy": "prod"} == subjects
    assert 21_600 == roles["deploy"]["max_session_duration"]
