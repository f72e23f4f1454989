"""Settings: read once, frozen, and precise about what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.settings import WorkerSettings, load

GOOD = {
    "gateway_url": "https://gw:8443/",
    "ca_file": "ca.crt",
    "region": "eu-west-1",
    "join_token_file": "token",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WorkerSettings.model_fields:
        monkeypatch.delenv(f"AIRBRIDGE_WORKER_{name.upper()}", raising=False)


def test_a_file_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file given is what counts; variables fill in the rest."""
    config = tmp_path / "worker.toml"
    config.write_text('region = "eu-west-1"\nslots = 3\n')
    monkeypatch.setenv("AIRBRIDGE_WORKER_REGION", "us-east-1")
    monkeypatch.setenv("AIRBRIDGE_WORKER_GATEWAY_URL", "https://gw:1")
    monkeypatch.setenv("AIRBRIDGE_WORKER_CA_FILE", "/ca")
    monkeypatch.setenv("AIRBRIDGE_WORKER_JOIN_TOKEN_FILE", "/token")
    monkeypatch.setenv("AIRBRIDGE_WORKER_TASK_ENV", '{"A": "b"}')
    found = load(config)
    assert (found.region, found.slots, found.gateway_url) == ("eu-west-1", 3, "https://gw:1")
    assert found.task_env == {"A": "b"}


def test_task_envs_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's table adds to the variable's object, and wins where both name a variable."""
    config = tmp_path / "worker.toml"
    config.write_text('[task_env]\nCOLOUR = "red"\n')
    monkeypatch.setenv("AIRBRIDGE_WORKER_TASK_ENV", '{"AWS_ENDPOINT_URL": "http://aws", "COLOUR": "blue"}')
    found = load(config, **GOOD)
    assert found.task_env == {"AWS_ENDPOINT_URL": "http://aws", "COLOUR": "red"}


@pytest.mark.parametrize("text", ["{", "[]"])
def test_malformed_task_env_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Also where a file has another."""
    config = tmp_path / "worker.toml"
    config.write_text('[task_env]\nCOLOUR = "red"\n')
    monkeypatch.setenv("AIRBRIDGE_WORKER_TASK_ENV", text)
    with pytest.raises(SettingsError, match="AIRBRIDGE_WORKER_TASK_ENV"):
        load(config, **GOOD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": "EU West"}, "region (AIRBRIDGE_WORKER_REGION) is 'EU West': String should match pattern"),
        ({"gateway_url": "http://gw"}, "must begin with https://"),
        ({"slots": 0}, "slots (AIRBRIDGE_WORKER_SLOTS) is 0: Input should be greater than or equal to 1"),
        ({"slotz": 1}, "slotz is not a setting; the settings are: bundles_max_mib"),
        ({"join_token_file": None}, "join_method 'token' needs join_token_file"),
        ({"region": ...}, "region (AIRBRIDGE_WORKER_REGION) is not set; it is required"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], message: str) -> None:
    """The error names the setting, its variable, its value and what would be right."""
    values = {name: value for name, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(SettingsError) as caught:
        load(None, **values)
    assert message in str(caught.value)


def test_invalid_config_file_is_named(tmp_path: Path) -> None:
    """A missing or malformed --config file is an error about that file."""
    with pytest.raises(SettingsError, match=r"no\.toml: No such file"):
        load(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("region = ")
    with pytest.raises(SettingsError, match=r"bad\.toml: not TOML"):
        load(tmp_path / "bad.toml")


def test_trailing_slash_of_url_is_dropped() -> None:
    """Paths are appended to the URL, so its trailing slash is dropped."""
    assert load(None, **GOOD).gateway_url == "https://gw:8443"
