"""Each rule's answer to an access, with the reason, as an operator is shown it."""

from __future__ import annotations

from airbridge.control_plane.policy.decisions import Access, TaskFacts
from airbridge.control_plane.policy.rules import RulePolicy, considered

POLICY = b"""
schema = 1

[[rule]]
name = "reports"
regions = ["eu-*"]
pools = ["default"]
dags = ["etl_*"]
assets.change = ["report"]
"""


def answers(access: Access, region: str = "eu-west-1", pool: str = "default", dag: str = "etl_daily") -> str:
    task = TaskFacts("", "", dag, "", "", -1, region, pool, "w1", "")
    [found] = considered(RulePolicy.parse(POLICY, "policy.toml"), task, access)
    assert found.rule == "reports"
    return f"{'allows' if found.allows else 'denies'}: {found.why}"


def test_asset_rule_matches_each_name() -> None:
    """An asset has a name and a URI; a rule allows the access only if it matches each that is given."""
    assert answers(Access("assets:change", "report")) == "allows: assets.change = ['report']"
    denied = "denies: assets.change = ['report'] does not match "
    assert answers(Access("assets:change", "report", uri="s3://x")) == denied + "'s3://x'"
    assert answers(Access("assets:change", "x", uri="report")) == denied + "'x'"


def test_denial_names_what_differs() -> None:
    """The first of region, pool, DAG, key and pattern that does not fit is the reason."""
    report = Access("assets:change", "report")
    assert answers(report, region="us-east-1") == "denies: regions = ['eu-*'] does not match 'us-east-1'"
    assert answers(report, pool="gpu") == "denies: pools = ['default'] does not match 'gpu'"
    assert answers(report, dag="ml") == "denies: dags = ['etl_*'] does not match 'ml'"
    assert answers(Access("assets:read", "report")) == "denies: it has no assets.read"
    assert (
        answers(Access("assets:change", "a", uri="b"))
        == "denies: assets.change = ['report'] does not match 'a' or 'b'"
    )
