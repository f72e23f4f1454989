"""Environment of a local platform's processes, and what it takes from the user's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.local.test_files import a_plan

from airbridge.control_plane.local import environment, plan


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, {}),
        (
            {"UV_DEFAULT_INDEX": "https://packages.example/simple"},
            {"airbridge.package_index": "https://packages.example/simple"},
        ),
        (
            {"UV_INDEX_URL": "https://old.example/simple"},
            {"airbridge.package_index": "https://old.example/simple"},
        ),
        (
            {"UV_DEFAULT_INDEX": "https://a.example/simple", "UV_INDEX_URL": "https://b.example/simple"},
            {"airbridge.package_index": "https://a.example/simple"},
        ),
        ({"UV_DEFAULT_INDEX": "", "UV_FIND_LINKS": ""}, {}),
        ({"UV_FIND_LINKS": "/srv/wheels"}, {"airbridge.package_find_links": "/srv/wheels"}),
        (
            {"UV_DEFAULT_INDEX": "https://ann:hush@packages.example:8443/simple"},
            {"airbridge.package_index": "https://packages.example:8443/simple"},
        ),
        (
            {"UV_FIND_LINKS": "https://ann:hush@packages.example/wheels"},
            {"airbridge.package_find_links": "https://packages.example/wheels"},
        ),
    ],
)
def test_packages_come_from_uvs_index(given: dict[str, str], settings: dict[str, str]) -> None:
    """DAGs' packages come from the index that `make` installs from; credentials in its URL are not taken over."""
    assert environment.package_settings({"PATH": "/bin", **given}) == settings


@pytest.mark.parametrize(
    ("given", "variables"),
    [
        ({}, {}),
        ({"NO_PROXY": "intern.example"}, {}),
        (
            {"HTTPS_PROXY": "http://ann:hush@proxy.example:3128"},
            {
                "HTTPS_PROXY": "http://ann:hush@proxy.example:3128",
                "NO_PROXY": "127.0.0.1,localhost,emulator.example",
                "no_proxy": "127.0.0.1,localhost,emulator.example",
            },
        ),
        (
            {"http_proxy": "http://proxy.example", "no_proxy": "intern.example, localhost"},
            {
                "http_proxy": "http://proxy.example",
                "NO_PROXY": "intern.example,localhost,127.0.0.1,emulator.example",
                "no_proxy": "intern.example,localhost,127.0.0.1,emulator.example",
            },
        ),
    ],
)
def test_packages_come_through_the_proxy(given: dict[str, str], variables: dict[str, str]) -> None:
    """Processes that fetch packages use the shell's proxy, but not to reach this platform."""
    assert environment.proxies({"PATH": "/bin", **given}, ["emulator.example"]) == variables
    assert environment.base(given) == environment.base({})


def test_builders_alone_get_the_proxy(tmp_path: Path) -> None:
    """The processes that build packages get the proxy; those whose requests stay on this machine do not."""
    behind = replace(a_plan(tmp_path), environ={"HTTPS_PROXY": "http://proxy.example:3128"})
    with_proxy = {each.name for each in plan.components(behind) if "HTTPS_PROXY" in each.env}
    assert with_proxy == {"dag-processor", "gateway"}


def test_tasks_install_from_the_same_index() -> None:
    """Tasks that install packages use the index and the certificates of the shell; credentials are not taken over."""
    given = {
        "UV_DEFAULT_INDEX": "https://ann:hush@packages.example/simple",
        "PIP_FIND_LINKS": "https://ann:hush@a.example/wheels https://bo:quiet@b.example/wheels /srv/wheels",
        "UV_FIND_LINKS": "https://ann:hu,sh@a.example/wheels,https://bo:quiet@b.example/wheels",
        "UV_INDEX_URL": "",
        "PIP_CERT": "/etc/company.pem",
        "PIP_CONFIG_FILE": "/home/ann/pip.conf",
    }
    assert environment.task_packages(given) == {
        "UV_DEFAULT_INDEX": "https://packages.example/simple",
        "PIP_FIND_LINKS": "https://a.example/wheels https://b.example/wheels /srv/wheels",
        "UV_FIND_LINKS": "https://a.example/wheels,https://b.example/wheels",
    }
    assert environment.base(given)["PIP_CERT"] == "/etc/company.pem"
