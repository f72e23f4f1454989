"""Residency in the catalogue: what pools keep, what their tasks are told, and combinations that are refused."""

from __future__ import annotations

import pytest

from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.residency import xcoms
from airbridge.core.residency.settings import kept, task_options

HEAD = 'home_region = "a"\n[[region]]\nname = "a"\naws_region = "eu-west-1"\nlog_bucket = "l"\nbundle_bucket = "d"\n'
POOL = '[[region.pool]]\nqueue_url = "http://q/a"\n'
OTHER = HEAD.replace('home_region = "a"', "").replace('"a"', '"b"') + POOL.replace("/a", "/b")


def catalogue(region: str = "", pool: str = "") -> Catalogue:
    return Catalogue.parse(f"{HEAD}{region}\n{POOL}{pool}\n{OTHER}")


def test_pool_overrides_its_region() -> None:
    """A pool's bound for XComs takes the place of the region's; without either none is stored."""
    for region, pool, inline in (
        ("", "", None),
        ("xcom_inline_bytes = 7", "", 7),
        ("xcom_inline_bytes = 7", "xcom_inline_bytes = 0", 0),
        ('residency = "strict"', "", 0),
    ):
        [first, _] = catalogue(region, pool).places()
        assert kept(*first).inline_bytes == inline


def test_every_region_reads_references() -> None:
    """Once one region stores XComs, tasks of all regions have the backend; that region's alone store them."""
    [here, there] = [
        task_options(catalogue("xcom_inline_bytes = 7"), *place)
        for place in catalogue("xcom_inline_bytes = 7").places()
    ]
    assert here["core"] == there["core"] == {"xcom_backend": xcoms.BACKEND}
    assert here[xcoms.SECTION] == {"inline_bytes": "7", "preview_bytes": "0"}
    assert xcoms.SECTION not in there
    assert [task_options(catalogue(), *place) for place in catalogue().places()] == [{}, {}]


@pytest.mark.parametrize(
    ("region", "pool", "message"),
    [
        ('residency = "strict"\nxcom_inline_bytes = 1', "", "must be 0 or absent"),
        ('residency = "strict"\nxcom_preview_bytes = 1', "", "must be 0 or absent"),
        ('residency = "strict"', "xcom_inline_bytes = 1", "must be 0 in region 'a'"),
        ('residency = "mostly"', "", "residency"),
        ("", 'secrets_backend_kwargs = {a = "b"}', "no secrets_backend"),
        ("", 'secrets_backend = "../x"', "secrets_backend"),
        ('transport = "gateway"\nxcom_inline_bytes = 1', "", "xcom_inline_bytes needs the transport direct"),
        ("xcom_inline_bytes = 1", 'transport = "gateway"', "xcom_inline_bytes needs the transport direct"),
        ('transport = "gateway"\nresidency = "strict"', "", "strict residency needs the transport direct"),
    ],
)
def test_contradiction_is_refused(region: str, pool: str, message: str) -> None:
    """What strict cannot be, and settings without effect, are errors that name the region or the pool."""
    with pytest.raises(ConfigurationError, match=message):
        catalogue(region, pool)
