from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import GeneratorType
from typing import Any

import pytest

from airbridge.control_plane.task_locations import NOWHERE, Note, TaskLocation
from airbridge.control_plane.task_logs.reader import RegionalLogs, lines, segments, upload_key
from airbridge.core.aws.object_store import MemoryStore

PATH = "dag_id=d/run_id=r/task_id=t/attempt=1.log"
FIRST = "20250820T120000.000000Z-1-aaaa"
SECOND = "20250820T130000.000000Z-2-bbbb"
IN_EU = TaskLocation(regions=("eu-west-1",), worker="w1", edge=True)


@dataclass
class Ti:
    """As much of a task instance as a log reader looks at."""

    state: str = "success"
    id: str = "0198"


class Stores(dict[str, MemoryStore]):
    """The log buckets of two regions."""

    def __init__(self) -> None:
        super().__init__({name: MemoryStore(f"logs-{name}") for name in ("us-east-1", "eu-west-1")})

    def write(self, region: str, segment: str, file: str, text: str) -> str:
        key = f"logs/{PATH}/{segment}/{file}"
        self[region].put(key, text.encode())
        return key


@pytest.fixture
def stores() -> Stores:
    return Stores()


def reader(stores: Stores, location: TaskLocation = IN_EU) -> RegionalLogs:
    return RegionalLogs(regions=lambda: ("us-east-1", stores), locate=lambda _: location)


def read(stores: Stores, state: str = "success", location: TaskLocation = IN_EU) -> list[str]:
    _, streams = reader(stores, location).read(PATH, Ti(state))
    return [line for stream in streams or [] for line in stream]


def sources(stores: Stores, state: str = "success", location: TaskLocation = IN_EU) -> list[str]:
    return reader(stores, location).read(PATH, Ti(state))[0]


def test_finished_task(stores: Stores) -> None:
    """The whole log is read, as generators, which Airflow's handler requires; the source line gives the object's address."""
    stores.write("eu-west-1", FIRST, "full.log", "one\ntwo\n")
    found, streams = reader(stores).read(PATH, Ti())
    assert streams is not None
    assert [type(stream) for stream in streams] == [GeneratorType]
    assert list(streams[0]) == ["one", "two"]
    assert found == [f"s3://logs-eu-west-1/logs/{PATH}/{FIRST}/ (eu-west-1)"]


def test_running_task(stores: Stores) -> None:
    """While the task runs its chunks are read in order, whatever lines they cut through; an unfinished line waits."""
    stores.write("eu-west-1", FIRST, "00000001.log", "one\ntw")
    stores.write("eu-west-1", FIRST, "00000002.log", "o\nthree\nfo")
    assert read(stores, "running") == ["one", "two", "three"]
    assert read(stores, "failed") == ["one", "two", "three", "fo"]


def test_cut_through_a_character(stores: Stores) -> None:
    """A chunk that ends inside a character does not damage it."""
    text = "grüße\n".encode()
    stores["eu-west-1"].put(f"logs/{PATH}/{FIRST}/00000001.log", text[:3])
    stores["eu-west-1"].put(f"logs/{PATH}/{FIRST}/00000002.log", text[3:])
    assert read(stores, "running") == ["grüße"]


def test_whole_is_preferred_to_chunks(stores: Stores) -> None:
    """Chunks that have not been deleted yet are not read beside the whole."""
    stores.write("eu-west-1", FIRST, "00000001.log", "one\n")
    stores.write("eu-west-1", FIRST, "full.log", "one\ntwo\n")
    assert read(stores) == ["one", "two"]


def test_task_ends_while_it_is_read(stores: Stores) -> None:
    """If chunks give way to the whole in the middle of reading, the reader goes on where it was."""
    first = stores.write("eu-west-1", FIRST, "00000001.log", "one\ntwo\n")
    second = stores.write("eu-west-1", FIRST, "00000002.log", "three\n")
    _, streams = reader(stores).read(PATH, Ti("running"))
    assert streams is not None
    seen = [next(streams[0])]
    stores.write("eu-west-1", FIRST, "full.log", "one\ntwo\nthree\nfour\n")
    stores["eu-west-1"].delete([first, second])
    assert seen + list(streams[0]) == ["one", "two", "three", "four"]


def test_several_segments(stores: Stores) -> None:
    """A deferred task's parts are read in the order of their time, the trigger's from the home region among them."""
    stores.write("eu-west-1", SECOND, "full.log", "resumed\n")
    stores.write("eu-west-1", FIRST, "full.log", "deferred\n")
    stores.write("us-east-1", "20250820T123000.000000Z-0-trigger-7", "full.log", "triggered\n")
    assert read(stores) == ["deferred", "triggered", "resumed"]


def test_fallback_over_regions(stores: Stores) -> None:
    """A try that was released in one region and ran in another is read from both."""
    stores.write("us-east-1", FIRST, "full.log", "released\n")
    stores.write("eu-west-1", SECOND, "full.log", "ran\n")
    both = TaskLocation(regions=("us-east-1", "eu-west-1"), edge=True)
    assert read(stores, location=both) == ["released", "ran"]


@pytest.mark.parametrize("location", [NOWHERE, TaskLocation(regions=("gone-1",), edge=True)])
def test_unknown_location_reads_every_region(stores: Stores, location: TaskLocation) -> None:
    """Once the ledger has forgotten a try, or its region left the catalogue, every region is looked in."""
    stores.write("eu-west-1", FIRST, "full.log", "one\n")
    assert read(stores, location=location) == ["one"]


def test_unreachable_region(stores: Stores) -> None:
    """A region that cannot be reached is named among the sources; what the others have is shown."""
    stores["eu-west-1"].unreachable = True
    stores.write("us-east-1", FIRST, "full.log", "one\n")
    assert read(stores) == ["one"]
    assert any("region eu-west-1 cannot be read now" in source for source in sources(stores))


def test_region_lost_while_it_is_read(stores: Stores) -> None:
    """If a region becomes unreachable during a read, the log ends with a line that reports it, not with an error page."""
    stores.write("eu-west-1", FIRST, "00000001.log", "one\n")
    stores.write("eu-west-1", FIRST, "00000002.log", "two\n")
    _, streams = reader(stores).read(PATH, Ti("running"))
    assert streams is not None
    seen = [next(streams[0])]
    stores["eu-west-1"].unreachable = True
    *_, last = seen + list(streams[0])
    assert json.loads(last)["event"].startswith("The rest of this log cannot be read now")
    assert json.loads(last)["level"] == "warning"


@pytest.mark.parametrize(("state", "text"), [("running", "yet"), ("failed", "disconnected")])
def test_nothing_there(stores: Stores, state: str, text: str) -> None:
    """Without a log the reader returns None, as Airflow's handler expects, and a source line that explains it."""
    found, streams = reader(stores).read(PATH, Ti(state))
    assert streams is None
    assert len(found) == 1
    assert "eu-west-1" in found[0]
    assert "w1" in found[0]
    assert text in found[0]


def test_nothing_there_and_not_ours(stores: Stores) -> None:
    """For the missing log of another executor's task the reader returns neither sources nor lines."""
    assert reader(stores, NOWHERE).read(PATH, Ti()) == ([], None)


def test_notes_of_the_ledger(stores: Stores) -> None:
    """Events that the task could not log itself (lost, or never placed) appear in its log, with their time."""
    note = Note(datetime(2025, 8, 20, 12, tzinfo=UTC), "unplaceable: there is no region 'mars-1'")
    (line,) = read(stores, location=TaskLocation(("eu-west-1",), edge=True, notes=(note,)))
    assert json.loads(line) == {
        "event": "unplaceable: there is no region 'mars-1'",
        "logger": "airbridge",
        "level": "error",
        "timestamp": "2025-08-20T12:00:00+00:00",
    }


def test_masked_stays_masked(stores: Stores) -> None:
    """The reader passes on what the worker masked, as it is."""
    line = json.dumps({"event": "password is ***", "timestamp": "2025-08-20T12:00:00Z"})
    stores.write("eu-west-1", FIRST, "full.log", line + "\n")
    assert read(stores) == [line]


def test_other_keys_are_no_segments(stores: Stores) -> None:
    """An object that is not in a segment, or of a try with a longer name, is left alone."""
    stores["eu-west-1"].put(f"logs/{PATH}/stray", b"x")
    stores["eu-west-1"].put(f"logs/{PATH}.trigger.1.log/{FIRST}/full.log", b"x")
    assert segments("eu-west-1", stores["eu-west-1"], PATH) == []


@pytest.mark.parametrize(
    ("pieces", "whole", "expected"),
    [
        ([], True, []),
        ([b"a\n\nb\n"], True, ["a", "", "b"]),
        ([b"a", b"b\nc"], True, ["ab", "c"]),
        ([b"a", b"b\nc"], False, ["ab"]),
        ([b"\xff\n"], True, ["\ufffd"]),
    ],
)
def test_lines_are_whole(pieces: list[bytes], whole: bool, expected: list[str]) -> None:
    """Lines come out whole, however they were cut."""
    assert list(lines(pieces, whole=whole)) == expected


# --- Uploading ---


def test_upload_key() -> None:
    """A trigger's log becomes a segment of its task's; a local task's one of its own."""
    at = datetime(2025, 8, 20, 12, 30, tzinfo=UTC)
    expected = f"logs/{PATH}/20250820T123000.000000Z-0-"
    assert upload_key(f"{PATH}.trigger.7.log", at, "0198") == expected + "trigger-7/full.log"
    assert upload_key(PATH, at, "0198") == expected + "local-0198/full.log"


@pytest.fixture
def write_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))

    def write(relative: str, text: str) -> None:
        path = tmp_path / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def test_uploaded_log_is_read(stores: Stores, write_local: Callable[[str, str], None]) -> None:
    """A log uploaded from the control plane is read like any other segment, ordered by its first line."""
    line = json.dumps({"event": "fired", "timestamp": "2025-08-20T12:30:00.000001Z"})
    write_local(f"{PATH}.trigger.7.log", line + "\n")
    reader(stores).upload(f"{PATH}.trigger.7.log", Ti())
    assert [info.key for info in stores["us-east-1"].list("")] == [
        f"logs/{PATH}/20250820T123000.000001Z-0-trigger-7/full.log"
    ]
    assert read(stores) == [line]


def test_upload_of_plain_text(stores: Stores, write_local: Callable[[str, str], None]) -> None:
    """A log whose first line has no timestamp is ordered by the file's."""
    write_local(PATH, "plain text\n")
    reader(stores).upload(PATH, Ti())
    assert read(stores) == ["plain text"]


@pytest.mark.parametrize("there", [True, False])
def test_upload_never_raises(stores: Stores, write_local: Callable[[str, str], Any], there: bool) -> None:
    """Neither an unreachable region nor a missing file ends the process that uploads."""
    if there:
        write_local(PATH, "text\n")
    stores["us-east-1"].unreachable = True
    reader(stores).upload(PATH, Ti())


def test_log_begins_with_location(stores: Stores) -> None:
    """The first line names the worker and region and links to the timeline; it is at level info and not from the task's logger."""
    stores.write("eu-west-1", FIRST, "full.log", "one\n")
    at = datetime(2026, 1, 31, tzinfo=UTC)
    header = Note(at, "Runs on eu-1 in eu-west-1. Timeline: /airbridge/timeline")
    first, *rest = read(stores, location=replace(IN_EU, header=(header,)))
    assert ["one"] == rest
    assert {
        "event": header.text,
        "level": "info",
        "logger": "airbridge",
        "timestamp": at.isoformat(),
    } == json.loads(first)
