"""What cannot start is refused at once, with the reason and the remedy."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.unit.local.test_terraform import outputs, region, write

from airbridge.control_plane.local.demo import _upload
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.process.supervisor import last_line
from airbridge.control_plane.local.services import terraform
from airbridge.control_plane.local.services.aws import parse_regions
from airbridge.control_plane.local.services.credentials import ADMINISTRATOR
from airbridge.control_plane.local.state import PlatformState
from airbridge.core.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mars"], "--region 'mars': unknown region 'mars'; local mode has AWS's, such as eu-central-1"),
        (["eu-west-11"], "unknown region 'eu-west-11'; did you mean eu-west-1"),
        ([""], "--region '': unknown region ''"),
        (["eu-west-1", "eu-west-1:gpu"], "--region eu-west-1 is given twice; name its pools once"),
        (["eu-west-1:"], "'' cannot be a pool's name here; write NAME:POOL,POOL"),
        (["eu-west-1:a,a"], "'a' cannot be a pool's name here"),
        (["eu-west-1:GPU"], "'GPU' cannot be a pool's name here"),
        (["us-east-1", "factory-7@mars"], "--region 'factory-7@mars': unknown region 'mars'"),
        (["us-east-1", "Factory@us-east-1"], "'Factory' cannot be the name of a place without AWS"),
        (["us-east-1", "eu-west-1@us-east-1"], "'eu-west-1' cannot be the name of a place without AWS"),
        (["factory-7@us-east-1"], "the first region is the control plane's own"),
    ],
)
def test_wrong_region_is_named(words: list[str], message: str) -> None:
    """A region that AWS does not have, or a pool that cannot be, is an error that names it and what would be right."""
    with pytest.raises(ConfigurationError) as caught:
        parse_regions(words)
    assert message in str(caught.value)


def test_regions_and_pools_are_read() -> None:
    """A region has its default pool, or those that are named."""
    found = parse_regions(["us-east-1", "cn-north-1:default,gpu"])
    assert [(each.name, each.pools) for each in found] == [
        ("us-east-1", ("default",)),
        ("cn-north-1", ("default", "gpu")),
    ]


class Page(http.server.BaseHTTPRequestHandler):
    """Another program at the emulator's address."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def another_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_proxy_is_not_asked_for_the_emulator(
    tmp_path: Path, another_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deployment's check and the demo's upload reach an emulator on this machine without the user's proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    directory = write(
        tmp_path, outputs(), region("eu-west-1", another_server) + region("us-east-1", another_server)
    )
    with pytest.raises(ConfigurationError, match=r"cannot be reached \(.*\(404\)"):
        terraform.check_applied(terraform.read(directory), directory, ADMINISTRATOR)
    platform = cast("PlatformState", SimpleNamespace(aws_url=another_server))
    _upload(platform, Options(directory=tmp_path))


@pytest.mark.parametrize("running", [False, True])
def test_deployment_must_be_there(tmp_path: Path, another_server: str, running: bool) -> None:
    """A deployment whose emulator is gone, or is another program, is an error that names `make infra-local`."""
    url = another_server if running else "http://127.0.0.1:9"
    directory = write(tmp_path, outputs(), region("eu-west-1", url) + region("us-east-1", url))
    deployed = terraform.read(directory)
    with pytest.raises(ConfigurationError, match=r"cannot be reached \(.*\); run 'make infra-local' first"):
        terraform.check_applied(deployed, directory, ADMINISTRATOR)


def test_last_line_is_no_markup() -> None:
    """The last line of a log that an error quotes says something: no page's mark-up, no empty line."""
    page = "Traceback\nKeyError: 'mars'\n\n<!doctype html>\n<html lang=en>\n</html>\n\n"
    assert last_line(page) == "KeyError: 'mars'"
    assert last_line("") == ""
