"""ECR on the emulator: the registries of an environment, and repositories of a region that is new."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.moto import Moto
from tests.unit.ci.tree import ROOT

from airbridge.ci import ecr
from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import CheckoutError, RegistryError

ADDRESS = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/airbridge-dev"


def test_registries_of_environment() -> None:
    """The home region's comes first: it is where a release is pushed."""
    assert ecr.addresses(Checkout(ROOT), "dev") == (
        "111111111111.dkr.ecr.us-east-1.amazonaws.com/airbridge-dev",
        "111111111111.dkr.ecr.eu-west-1.amazonaws.com/airbridge-dev",
    )
    with pytest.raises(CheckoutError, match=r"infra/environments/nowhere\.toml"):
        ecr.addresses(Checkout(ROOT), "nowhere")


def test_missing_repositories_are_made(moto: Moto) -> None:
    """In a new region there is none, and a push would be refused; the second time nothing is made."""

    def clients(service: str, region: str) -> Any:
        return moto.client(service, region)

    assert ecr.require_repositories(ADDRESS, ["control-plane", "edge-worker"], clients) == [
        "airbridge-dev/control-plane",
        "airbridge-dev/edge-worker",
    ]
    (made,) = moto.client("ecr", "eu-west-1").describe_repositories(
        repositoryNames=["airbridge-dev/edge-worker"]
    )["repositories"]
    assert made["imageTagMutability"] == "IMMUTABLE"
    assert ecr.require_repositories(ADDRESS, ["control-plane", "edge-worker"], clients) == []


def test_another_registry_is_left_alone() -> None:
    """A registry that is not ECR makes repositories itself."""
    assert ecr.require_repositories("registry.example.com/airbridge", ["control-plane"]) == []


def test_a_refusal_names_the_repository(moto: Moto) -> None:
    """An error of AWS carries the registry and the repository."""

    def clients(service: str, region: str) -> Any:
        return moto.client(service, region)

    with pytest.raises(RegistryError, match=r"eu-west-1.*airbridge-dev/NOT VALID"):
        ecr.require_repositories(ADDRESS, ["NOT VALID"], clients)
