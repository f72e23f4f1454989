"""A full disk costs a local platform neither its keys nor its orderly stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs
from tests.unit.local.full_disk import full_disk
from tests.unit.local.test_files import a_plan
from tests.unit.local.test_supervisor import FakeChild, FakeClock

from airbridge.control_plane.local import keys, logfile
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.plan import Plan
from airbridge.control_plane.local.platform import Platform, Watcher
from airbridge.control_plane.local.process.component import Component


def test_keys_survive_a_full_disk(tmp_path: Path) -> None:
    """Keys that cannot be written stay as they are; those that have not changed are not written."""
    path = tmp_path / "keys.json"
    before = keys.load_or_make(path, ["a"], {})
    with full_disk():
        assert before == keys.load_or_make(path, ["a"], {})
        with pytest.raises(OSError, match="File too large"):
            keys.load_or_make(path, ["a", "b"], {})
    assert before == keys.load_or_make(path, ["a"], {})
    assert [path] == [*tmp_path.iterdir()]


def test_keys_of_an_older_version_are_completed(tmp_path: Path) -> None:
    """A secret that the file lacks is created once, and kept."""
    path = tmp_path / "keys.json"
    made = keys.load_or_make(path, ["a"], {})
    path.write_text(made.model_dump_json(exclude={"api_secret_key"}))
    assert keys.load_or_make(path, ["a"], {}) == keys.load_or_make(path, ["a"], {})


class Prepared(Platform):
    """A platform whose files are there."""

    the_plan: Plan

    def prepare(self) -> Plan:
        return self.the_plan


def test_platform_stops_in_order_on_a_full_disk(tmp_path: Path) -> None:
    """A platform whose state cannot be written goes on, and gives its processes the time to end."""
    children: list[FakeChild] = []

    def spawn(_component: Component) -> FakeChild:
        children.append(FakeChild(pid=100 + len(children), ends_on=None))
        return children[-1]

    wanted = iter([True, True, False])
    watcher = Watcher(note=lambda _text: None, changed=lambda _state: None, ready=lambda _state: None)
    platform = Prepared(
        Options(directory=tmp_path / "state"),
        environ={},
        cache=tmp_path,
        spawn=spawn,
        clock=FakeClock(),
        watcher=watcher,
    )
    platform.the_plan = a_plan(tmp_path)
    # Captured: this process's own output is a file as well.
    with capture_logs() as events, full_disk():
        platform.run(lambda: next(wanted))
    assert [[signal.SIGINT], [signal.SIGKILL]] == [child.signals for child in children]
    assert "platform.state_not_written" in [event["event"] for event in events]


@contextmanager
def structlog_restored() -> Iterator[None]:
    before = structlog.get_config()
    try:
        yield
    finally:
        structlog.configure(**before)


def test_log_survives_a_full_disk(tmp_path: Path) -> None:
    """Events that the log does not take are lost, and later ones are written."""
    path = tmp_path / "supervisor.log"
    with structlog_restored():
        logfile.configure(path)
        log = structlog.get_logger("test")
        with full_disk():
            log.info("lost")
        log.info("written")
    (line,) = path.read_text().splitlines()
    assert "written" in line
