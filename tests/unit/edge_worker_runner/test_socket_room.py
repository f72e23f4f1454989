"""Room that a task's TMPDIR leaves for the names of UNIX sockets (a case of https://github.com/python/cpython/issues/132124)."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from airbridge.edge_worker.ops import doctor
from airbridge.edge_worker.runner.sandbox import short_path
from airbridge.edge_worker.runner.settings import NEEDED_FOR_SOCKETS, room_for_sockets, tasks_dir
from airbridge.edge_worker.settings import load


def test_room_is_what_the_kernel_leaves() -> None:
    """A name of just that length can be bound beneath a working directory, and one that is longer cannot."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        airflow_home = Path(home, "airflow")
        working_dir = tasks_dir(airflow_home) / ("d" * 8) / ("w" * 8)
        working_dir.mkdir(parents=True)
        room = room_for_sockets(airflow_home)
        with socket.socket(socket.AF_UNIX) as fits, socket.socket(socket.AF_UNIX) as too_long:
            fits.bind(str(working_dir / ("s" * room)))
            with pytest.raises(OSError, match="AF_UNIX path too long"):
                too_long.bind(str(working_dir / ("s" * (room + 1))))


def test_link_makes_room(tmp_path: Path) -> None:
    """Through the link a socket of the length that tools need can be bound, however long the directory's own name is."""
    tasks = tmp_path / ("long" * 30)
    working_dir = tasks / ("d" * 8) / ("w" * 8)
    working_dir.mkdir(parents=True)
    link = short_path.make(tasks)
    assert link is not None
    try:
        short = short_path.shortest(working_dir, str(tasks), str(link))
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"{short}/{'s' * (NEEDED_FOR_SOCKETS - 1)}")
        assert len(list(working_dir.iterdir())) == 1
    finally:
        short_path.remove(link)
    assert not link.parent.exists()
    assert short_path.shortest(working_dir, str(tasks), str(link)) == str(working_dir)


def test_changed_link_is_not_followed(tmp_path: Path) -> None:
    """A link that leads elsewhere by now is not taken: what is there could be anybody's."""
    tasks, other = tmp_path / "tasks", tmp_path / "other"
    for each in (tasks, other):
        (each / "d").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(other)
    assert short_path.shortest(tasks / "d", str(tasks), str(link)) == str(tasks / "d")


def test_link_of_killed_process_is_removed(tmp_path: Path) -> None:
    """A second link to the same directory takes the place of the first, and of one whose directory is gone."""
    gone = tmp_path / "gone"
    gone.mkdir()
    dangling, first = short_path.make(gone), short_path.make(tmp_path)
    gone.rmdir()
    second = short_path.make(tmp_path)
    assert first is not None
    assert second is not None
    assert dangling is not None
    assert (first.parent.exists(), dangling.parent.exists()) == (False, False)
    assert second.resolve() == tmp_path.resolve()
    short_path.remove(second)


@pytest.mark.parametrize(("longer", "ok"), [(0, True), (1, False)])
def test_doctor_checks_the_length(longer: int, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no link can be made, a state directory that is one character too long is named, with the right length."""
    monkeypatch.setattr(short_path, "place", lambda: None)
    longest = room_for_sockets(Path("/s/airflow")) + len("/s") - NEEDED_FOR_SOCKETS
    state_dir = Path("/" + "s" * (longest - 1 + longer))
    settings = load(
        None,
        gateway_url="https://gateway",
        region="eu-west-1",
        name="w",
        state_dir=state_dir,
        join_token_file="/j",
        ca_file="/ca",
    )
    result = doctor._socket_room(settings)
    assert result.ok is ok
    assert ok or f"at most {longest}" in result.detail
