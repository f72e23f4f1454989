"""Policy decisions: which names of an asset another reference covers, and the policy without rules."""

from __future__ import annotations

import pytest
from tests.unit.control_plane.test_rules import TASK

from airbridge.control_plane.policy.decisions import OWN, Access, AirflowPolicy, AssetRef, Ruling

BOTH = AssetRef("orders", "s3://orders")
NAMED = AssetRef("orders")
ALIAS = AssetRef("orders", alias=True)


@pytest.mark.parametrize(
    ("declared", "asked", "covered"),
    [
        (BOTH, BOTH, True),
        (BOTH, AssetRef("orders"), True),
        (BOTH, AssetRef(uri="s3://orders"), True),
        (BOTH, AssetRef("orders", "s3://secret"), False),
        (BOTH, AssetRef("secret", "s3://orders"), False),
        (BOTH, AssetRef("secret"), False),
        (BOTH, AssetRef(uri="s3://secret"), False),
        (BOTH, AssetRef(), False),
        (NAMED, NAMED, True),
        (NAMED, AssetRef(uri="s3://orders"), False),
        (NAMED, BOTH, False),
        (ALIAS, ALIAS, True),
        (ALIAS, AssetRef("secret", alias=True), False),
        (ALIAS, NAMED, False),
        (NAMED, ALIAS, False),
        (ALIAS, AssetRef(), False),
    ],
)
def test_declared_asset_covers_its_names(declared: AssetRef, asked: AssetRef, covered: bool) -> None:
    """Every name that is asked by has to be the declared asset's; an alias is not the asset of the same name."""
    assert declared.covers(asked) is covered


def test_airflow_allows_everything() -> None:
    """Airflow's own semantics: any task may have any access, by no rule in particular."""
    assert AirflowPolicy().judge(TASK, Access("connections:read", "secret")) == Ruling(True, OWN)
