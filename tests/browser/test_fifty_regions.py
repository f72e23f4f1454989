"""Fifty regions and a thousand workers: each page is clean and fits, and the Regions page has the troubles on top."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.browser.conftest import LOOKS, Stage, served
from tests.support.postgres import Postgres

from airbridge.control_plane.dashboard.drawings import world

SEEDED = ("us-east-1", "eu-west-1", "ap-south-1", "sa-east-1")
REGIONS = [*(name for name in world.PLACES if name not in SEEDED), *(f"factory-{n}" for n in range(1, 17))]
PAGES = ("/", "/?health=trouble", "/workers", "/work", "/usage?by=region,pool", "/parity")


@pytest.fixture(scope="module")
def large(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory, browser: Any
) -> Iterator[Stage]:
    with served(postgres, postgres_template, tmp_path_factory.mktemp("large"), browser, REGIONS) as stage:
        yield stage


@pytest.mark.slow("make proof-scale")
@pytest.mark.parametrize("look", LOOKS)
def test_pages_of_fifty_regions_are_clean(large: Stage, look: str) -> None:
    """No console error, no finding of axe-core, nothing wider than the window; the map names what is in trouble."""
    assert len(REGIONS) + len(SEEDED) == 50
    with large.view(look) as view:
        for path in PAGES:
            view.open(path)
            view.page.wait_for_timeout(150)
            if path == "/":
                view.page.wait_for_selector(".chart canvas")
                view.keep(f"fifty-regions-{look}", whole=False)
                names = view.page.locator(".world text").all_text_contents()
                assert "us-east-1 (home)" in names
                assert "ap-south-1: cut off" in names
                assert len(names) < 30
            assert [] == view.findings(), path
            assert view.overflow() <= 0, path
            assert [] == view.complaints, path


@pytest.mark.slow("make proof-scale")
def test_troubles_come_first_and_are_found(large: Stage) -> None:
    """The table begins with the regions in trouble; search and health choose; the server's times are printed."""
    with large.view() as view:
        view.open("/")
        health = view.page.locator(
            "#live .scroll tbody tr:first-child td:first-of-type .badge"
        ).all_text_contents()
        bad = [each not in {"healthy", "idle", "draining"} for each in health]
        assert any(bad)
        assert bad == sorted(bad, reverse=True)
        view.open("/?q=FACTORY")
        rows = view.page.locator("#live .scroll tbody th").all_text_contents()
        assert len(rows) == 16
        assert all("factory-" in row for row in rows)
        view.open("/?q=mars")
        assert "No region matches." in view.page.locator("#live").inner_text()
    with large.server.client("viewer") as client:
        for path in PAGES:
            time.sleep(2.1)  # the dashboard computes a page anew
            began = time.perf_counter()
            assert client.get(path).status_code == 200
            print(f"{path}: {1000 * (time.perf_counter() - began):.0f} ms")
