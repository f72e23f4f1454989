"""Pushes through a running gateway: slow ones hold up no other, and what is published is recorded with it."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.integration.gateway.world import World, running
from tests.support.cloud import write_dag

from airbridge.control_plane.dags import Publisher
from airbridge.control_plane.gateway.api import operators
from airbridge.control_plane.gateway.threads import BUILD_THREADS, PUBLISHING_THREADS
from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.code.signature import SnapshotSigner
from airbridge.core.code.snapshot import pack
from airbridge.core.signing import Signer
from airbridge.executor._airflow import new_session
from airbridge.executor.bundle_settings import PackageSettings
from airbridge.executor.bundles.check import TreeCheck
from airbridge.executor.bundles.parsing import ParseReport
from airbridge.executor.bundles.registry import DatabaseRegistry
from airbridge.executor.bundles.store import BundleStore

ROOT = "/operator/v1/dags"


@dataclass(frozen=True)
class SlowCheck(TreeCheck):
    """Finds one DAG, after `seconds`; `begun` is set when it begins."""

    seconds: float = 0.0
    begun: threading.Event = field(default_factory=threading.Event)

    def __call__(self, bundle: str, tree: Path, packages: Path | None = None) -> ParseReport:
        self.begun.set()
        time.sleep(self.seconds)
        return ParseReport((), files={bundle: "one.py"})


class Plane:
    """The publisher of a control plane with one region in memory, over the gateway's database."""

    def __init__(self, *, check_seconds: float = 0.0, packages: PackageSettings | None = None) -> None:
        signer = SnapshotSigner.from_pem(Signer.generate().to_pem())
        registry = DatabaseRegistry(new_session, lambda: signer)
        bucket = MemoryStore("home")
        self.check = SlowCheck({}, seconds=check_seconds)
        self.publisher = Publisher(
            lambda bundle: BundleStore(bundle, "home", {"home": bucket}, registry),
            lambda _: None,
            check=self.check,
            packages=packages,
        )
        self._registry = registry

    def current(self, bundle: str) -> str | None:
        found = self._registry.current(bundle)
        return None if found is None else found.version


@contextmanager
def gateway(world: World, folder: Path, plane: Plane) -> Iterator[World]:
    """A gateway with this publisher, over the database of `world`."""
    with running(world.metadata, folder, publish=plane.publisher.steps) as it:
        yield it


def folder_of(root: Path, requirements: str | None = None) -> bytes:
    """Return the archive of a folder with one DAG."""
    write_dag(root, "one.py", "one")
    if requirements:
        (root / "requirements.txt").write_text(requirements)
    return pack(root).compressed()


def pushed(world: World, bundle: str) -> list[str]:
    return [
        each.detail["version"] for each in world.audited("dags.pushed") if each.detail["bundle"] == bundle
    ]


def test_builds_hold_up_no_other_push(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More pushes than are built at once wait for a package index that hangs: one without packages is answered meanwhile."""
    plain = folder_of(tmp_path / "plain")
    building = folder_of(tmp_path / "building", "tiny\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    many = max(BUILD_THREADS, PUBLISHING_THREADS) + 1
    with socket.create_server(("127.0.0.1", 0), backlog=64) as index:
        url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        plane = Plane(packages=PackageSettings(index=url, seconds=10.0))
        with (
            gateway(world, tmp_path / "gateway", plane) as it,
            ThreadPoolExecutor(many) as threads,
            it.operator(it.access_token("dags:push")) as operator,
        ):
            operator.timeout = 60
            waiting = [
                threads.submit(operator.put, f"{ROOT}/slow-{number}", content=building)
                for number in range(many)
            ]
            while len(list(scratch.glob("airbridge-push-*/environments/.build-*"))) < BUILD_THREADS:
                assert not waiting[0].done()
                time.sleep(0.05)
            answer = operator.put(f"{ROOT}/quick", content=plain, timeout=7)
            assert answer.status_code == 200
            refused = [each.result().json() for each in waiting]
    assert all("took longer than 10 s" in each["detail"] for each in refused)
    assert plane.current("quick") == answer.json()["version"]
    assert not list(scratch.glob("airbridge-push-*"))


def test_late_push_is_not_published(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that is answered with 503, because its check took too long, does not become current afterwards."""
    monkeypatch.setattr(operators, "PUSH_ANSWER_SECONDS", 1.0)
    plane = Plane(check_seconds=2.0)
    with (
        gateway(world, tmp_path / "gateway", plane) as it,
        it.operator(it.access_token("dags:push")) as operator,
    ):
        answer = operator.put(f"{ROOT}/late", content=folder_of(tmp_path / "dags"), timeout=30)
        assert (answer.status_code, answer.json()["detail"]) == (503, "no answer within 1 s")
        assert plane.check.begun.is_set()
    # The gateway has ended, and with it the check.
    assert plane.current("late") is None
    assert pushed(world, "late") == []


def test_published_push_is_recorded(world: World, tmp_path: Path) -> None:
    """A push that is published is recorded once, with the version; so is one of what is current already."""
    plane = Plane()
    archive = folder_of(tmp_path / "dags")
    with (
        gateway(world, tmp_path / "gateway", plane) as it,
        it.operator(it.access_token("dags:push")) as operator,
    ):
        first = operator.put(f"{ROOT}/recorded", content=archive).json()
        assert first["check_seconds"] is not None
        assert pushed(world, "recorded") == [first["version"]]
        again = operator.put(f"{ROOT}/recorded", content=archive).json()
    assert again == {"bundle": "recorded", "version": first["version"], "check_seconds": None}
    assert pushed(world, "recorded") == [first["version"]] * 2
    assert plane.current("recorded") == first["version"]
