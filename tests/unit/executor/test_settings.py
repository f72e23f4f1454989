"""Settings are read once, and a wrong one is named with its value and what would be right."""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, fields
from pathlib import Path

import pytest

from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.provider import get_provider_info
from airbridge.executor.settings import Settings

REQUIRED = {"regions_file": "/etc/airbridge/regions.toml", "secrets_dir": "/etc/airbridge/secrets"}


def read(**options: str) -> Settings:
    return Settings.read({**REQUIRED, **options}.get)


def test_minimal_configuration_uses_defaults() -> None:
    """Only the catalogue and the secrets must be given."""
    settings = read()
    assert settings.regions_file == Path("/etc/airbridge/regions.toml")
    assert settings.lost_after == 900.0
    assert settings.stop_after is None
    assert settings.replace is True


def test_options_are_read() -> None:
    """Text becomes the type of its field."""
    settings = read(
        lost_after="90", stop_after="45.5", replace="False", outbox_floor="3", default_queue="eu-1"
    )
    assert (settings.lost_after, settings.stop_after, settings.replace) == (90.0, 45.5, False)
    assert (settings.outbox_floor, settings.default_queue) == (3, "eu-1")
    images = ("sha256:" + 64 * "a", "sha256:" + 64 * "b")
    assert read(worker_images=", ".join(images)).worker_images == images


def test_blank_is_unset() -> None:
    """An empty option means its default, as airflow.cfg writes unset options."""
    assert read(stop_after=" ", default_queue="") == read()


def test_settings_are_frozen() -> None:
    """Settings cannot be changed after they are read."""
    with pytest.raises(FrozenInstanceError):
        read().lost_after = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lost_after": "soon"}, "[airbridge] lost_after is 'soon'; it must be a number"),
        ({"lost_after": "nan"}, "[airbridge] lost_after is 'nan'; it must be a finite number"),
        ({"lost_after": "0"}, "[airbridge] lost_after is '0'; it must be at least 1"),
        ({"lost_after": "1e12"}, "[airbridge] lost_after is '1e12'; it must be at most 315360000"),
        ({"message_ttl": "1e300"}, "[airbridge] message_ttl is '1e300'; it must be at most 315360000"),
        ({"retention_days": "9999999"}, "[airbridge] retention_days is '9999999'; it must be at most 3650"),
        ({"gateway_port": "65536"}, "[airbridge] gateway_port is '65536'; it must be at most 65535"),
        ({"replace": "maybe"}, "[airbridge] replace is 'maybe'; it must be True or False"),
        ({"outbox_floor": "2.5"}, "[airbridge] outbox_floor is '2.5'; it must be a whole number"),
        (
            {"regions_file": "regions.toml"},
            "[airbridge] regions_file is 'regions.toml'; it must be an absolute path",
        ),
        (
            {"worker_images": "edge-worker:1.2"},
            "[airbridge] worker_images is 'edge-worker:1.2'; it must be image digests, sha256:<64 hexadecimal digits>, separated by commas",
        ),
        (
            {"lease_seconds": "5"},
            "[airbridge] lease_seconds is '5.0'; it must be more than heartbeat_interval (10.0)",
        ),
        (
            {"stop_after": "1000"},
            "[airbridge] stop_after is '1000.0'; it must be at most lost_after (900.0)",
        ),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, str], message: str) -> None:
    """The error has the setting, its value and what would be right."""
    with pytest.raises(ConfigurationError) as caught:
        read(**options)
    assert str(caught.value) == message


def test_every_time_is_bounded() -> None:
    """Dates are computed with them: none may lie beyond the calendar. Rates and sizes are no times."""
    unbounded = {
        each.name
        for each in fields(Settings)
        if each.type in {"float", "float | None"} and each.metadata["maximum"] is None
    }
    assert unbounded == {
        "outbox_per_slot",
        "gateway_requests_per_second",
        "gateway_requests_per_second_per_worker",
        "gateway_requests_per_second_per_address",
        "package_max_mb",
    }


def test_a_missing_option_is_named() -> None:
    """The error describes the option and gives an example."""
    with pytest.raises(
        ConfigurationError, match=r"regions_file is not set; .*example /etc/airbridge/regions.toml"
    ):
        Settings.read(lambda _: None)


def test_every_option_is_registered() -> None:
    """The section that Airflow shows has every option, with a description and the default that is used."""
    options = get_provider_info()["config"]["airbridge"]["options"]
    assert set(options) == {each.name for each in fields(Settings)}
    for each in fields(Settings):
        assert options[each.name]["description"]
        shown = options[each.name]["default"]
        assert shown == (None if each.default in {MISSING, None} else str(each.default))


def test_written_defaults_are_read_back() -> None:
    """The output of `airflow config list` can be pasted into airflow.cfg."""
    options = get_provider_info()["config"]["airbridge"]["options"]
    shown = {name: option["default"] for name, option in options.items() if option["default"]}
    assert read(**shown) == read()
