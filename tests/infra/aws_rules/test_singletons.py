"""Things of which an account has one: two environments in it must not both make them, or one takes the other's away.

GitHub's OpenID Connect provider is refused the second time (EntityAlreadyExists); a registry's replication is overwritten in silence.
https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_PutReplicationConfiguration.html
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.infra.conftest import ENVIRONMENTS, Stacks, read

SINGLETONS = {"aws_iam_openid_connect_provider", "aws_ecr_replication_configuration"}


def made(stacks: Stacks) -> set[str]:
    return {kind for stack in stacks.values() for kind in stack["resource"]} & SINGLETONS


def test_second_environment_makes_no_singleton(local: Stacks, tmp_path: Path) -> None:
    """An environment that shares its account makes neither, and its pipelines trust the provider that is there."""
    from airbridge.infra.app import synthesise
    from airbridge.infra.settings import Settings

    assert made(local) == SINGLETONS
    text = (ENVIRONMENTS / "local.toml").read_text()
    (tmp_path / "local.toml").write_text(
        text.replace('tier = "local"', 'tier = "local"\nshares_account = true')
    )
    second = read(synthesise(Settings("local", tmp_path), tmp_path / "out"))
    assert made(second) == set()
    [trusted] = {
        json.loads(role["assume_role_policy"])["Statement"][0]["Principal"]["Federated"]
        for role in second["bootstrap"]["resource"]["aws_iam_role"].values()
    }
    assert trusted == "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com"
