"""Residency of a local platform, from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from airbridge.control_plane.local.services import aws
from airbridge.control_plane.local.services.residency import with_residency
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.regions import Residency

RESOURCES = aws.Resources(
    home_region="us-east-1", regions=aws.parse_regions(["us-east-1", "eu-west-1:default,gpu"])
)
CATALOGUE = aws.catalogue(RESOURCES, 5000)


def test_settings_are_added(tmp_path: Path) -> None:
    """Regions and pools get the file's settings by name, and the others stay as they are."""
    file = tmp_path / "residency.toml"
    file.write_text(
        '[[region]]\nname = "eu-west-1"\nresidency = "strict"\n[[region.pool]]\nname = "gpu"\n'
        'secrets_backend = "a.B"\nsecrets_backend_kwargs = {region_name = "eu-west-1", flag = true}\n'
    )
    home, europe = Catalogue.parse(with_residency(CATALOGUE, file)).regions
    assert (home.residency, europe.residency) == (Residency.OPEN, Residency.STRICT)
    assert [pool.secrets_backend for pool in europe.pools] == [None, "a.B"]
    assert europe.pools[1].secrets_backend_kwargs == {"region_name": "eu-west-1", "flag": True}
    assert with_residency(CATALOGUE, None) == CATALOGUE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("region", "Expected"),
        ('[[region]]\nname = "mars-1"\nresidency = "strict"', "has no mars-1"),
        ('[[region]]\nname = "eu-west-1"\nlog_bucket = "mine"', "log_bucket; it may have residency"),
        ('[[region]]\nname = "eu-west-1"\nresidency = "mostly"', "residency"),
    ],
)
def test_what_is_wrong_with_the_file_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    """The error names option and file."""
    file = tmp_path / "residency.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as raised:
        with_residency(CATALOGUE, file)
    assert f"--residency {file}" in str(raised.value)
