"""Sign-in to Airflow's UI outside local mode: no passwords in files, the client's secret in Secrets Manager."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import ENVIRONMENTS, Stacks, read

from airbridge.infra.app import synthesise
from airbridge.infra.settings import Settings

MANAGER = "airbridge.control_plane.sign_in.auth_manager.OidcAuthManager"
SECRET = "AIRBRIDGE_SECRET_OIDC_CLIENT_SECRET"


def containers(stacks: Stacks) -> dict[str, dict[str, Any]]:
    definitions = resources(stacks, "aws_ecs_task_definition")
    found = [one for _, task in definitions for one in json.loads(task["container_definitions"])]
    return {one["name"]: one for one in found if one["name"] != "migrations"}


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["environment"]}


@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_every_service_has_the_auth_manager(environment: str, synthesised: Any) -> None:
    """SimpleAuthManager opens a password file in a read-only home, with other passwords on each replica."""
    for name, container in containers(synthesised(environment)).items():
        assert MANAGER == variables(container)["AIRFLOW__CORE__AUTH_MANAGER"], name
        assert variables(container)["AIRFLOW__API__BASE_URL"].startswith("https://"), name


def test_api_server_gets_rules_and_secret(prod: Stacks) -> None:
    """The api-server alone has the rules and the client's secret, as files."""
    services = containers(prod)
    assert ["api-server"] == [name for name, one in services.items() if SECRET in json.dumps(one["secrets"])]
    rules = tomllib.loads(variables(services["api-server"])["AIRBRIDGE_UI_OIDC_TOML"])
    assert "/run/airbridge/ui-oidc.secret" == rules["client_secret_file"]
    assert {"viewer", "user", "op", "admin"} >= {role["role"] for role in rules["role"]}
    command = " ".join(services["api-server"]["command"])
    assert f'"${SECRET}" > /run/airbridge/ui-oidc.secret' in command
    assert '"$AIRBRIDGE_UI_OIDC_TOML" > /run/airbridge/ui-oidc.toml' in command
    assert (
        "/run/airbridge/ui-oidc.toml" == variables(services["api-server"])["AIRFLOW__AIRBRIDGE__UI_OIDC_FILE"]
    )


def test_client_secret_is_kept(prod: Stacks) -> None:
    """The secret is made without a value, and the api-server's starter role may read it."""
    names = [one["name"] for _, one in resources(prod, "aws_secretsmanager_secret")]
    assert "airbridge-prod/oidc-client-secret" in names
    readers = [
        path for path, one in resources(prod, "aws_iam_role_policy") if "oidc-client-secret" in one["policy"]
    ]
    assert ["api-server"] == [path.split("/")[-3] for path in readers]


def test_class_of_a_derived_image(tmp_path: Path) -> None:
    """Another auth manager is named by its class; its settings are options of Airflow."""
    text = (ENVIRONMENTS / "dev.toml").read_text()
    before, _, after = text.partition("[control_plane.auth]")
    own = '[control_plane.auth]\nurl = "https://airflow.example.com"\nmanager = "acme.auth.Manager"\n'
    (tmp_path / "dev.toml").write_text(before + own + "\n[images]" + after.partition("[images]")[2])
    found = containers(read(synthesise(Settings("dev", tmp_path), tmp_path / "out")))["api-server"]
    assert "acme.auth.Manager" == variables(found)["AIRFLOW__CORE__AUTH_MANAGER"]
    assert "AIRBRIDGE_UI_OIDC_TOML" not in json.dumps(found)
