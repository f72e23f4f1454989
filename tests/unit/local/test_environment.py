"""Environment of a local platform's processes, and what it takes from the user's."""

from __future__ import annotations

import pytest

from airbridge.control_plane.local import environment


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
