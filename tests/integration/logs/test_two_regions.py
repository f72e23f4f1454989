"""The log reader on real S3 calls, in two regions that a catalogue file describes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from tests.support.moto import Moto, free_port

from airbridge.control_plane.task_locations import NOWHERE, TaskLocation
from airbridge.control_plane.task_logs.reader import RegionalLogs
from airbridge.core.aws.object_store import S3Store

PATH = "dag_id=d/run_id=manual__2025-08-20T12:00:00+00:00/task_id=t/map_index=3/attempt=2.log"
IN_EU = TaskLocation(regions=("eu-west-1",), worker="w1", edge=True)


class Regions:
    """The catalogue file of two regions, and their log buckets."""

    def __init__(self, moto: Moto, catalogue_file: Path) -> None:
        self._moto = moto
        self._file = catalogue_file
        self._suffix = uuid4().hex[:12]
        for region in ("us-east-1", "eu-west-1"):
            moto.bucket(self._bucket(region), region)
        self.describe(moto.url)

    def _bucket(self, region: str) -> str:
        return f"logs-{region}-{self._suffix}"

    def describe(self, eu_endpoint: str) -> None:
        entries = [
            f'[[region]]\nname = "{region}"\nlog_bucket = "{self._bucket(region)}"\nbundle_bucket = "b"\n'
            f'endpoint_url = "{endpoint}"\n[[region.pool]]\nqueue_url = "{endpoint}/{region}/q"\n'
            for region, endpoint in (("us-east-1", self._moto.url), ("eu-west-1", eu_endpoint))
        ]
        self._file.write_text('home_region = "us-east-1"\n' + "".join(entries))

    def store(self, region: str) -> S3Store:
        return S3Store(self._moto.client("s3", region), self._bucket(region))


@pytest.fixture
def regions(moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Regions:
    for name, value in {
        **moto.environment,
        "AIRFLOW__AIRBRIDGE__REGIONS_FILE": str(tmp_path / "regions.toml"),
        "AIRFLOW__AIRBRIDGE__SECRETS_DIR": str(tmp_path),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(tmp_path / "airflow-logs"),
    }.items():
        monkeypatch.setenv(name, value)
    return Regions(moto, tmp_path / "regions.toml")


def read(location: TaskLocation, state: str = "success") -> tuple[list[str], list[str]]:
    """Sources and lines, as a process that has just read its settings gives them."""
    logs = RegionalLogs(locate=lambda _: location)
    sources, streams = logs.read(PATH, SimpleNamespace(state=state, id="0198"))
    return sources, [line for stream in streams or [] for line in stream]


def test_each_region_from_its_own_bucket(regions: Regions) -> None:
    """A log is read from the bucket of the region its task ran in, whole or in chunks."""
    segment = f"logs/{PATH}/20250820T120000.000000Z-1-a"
    regions.store("eu-west-1").put(f"{segment}/00000001.log", b"one\ntwo\n")
    regions.store("eu-west-1").put(f"{segment}/00000002.log", b"three\n")
    assert read(IN_EU, "running")[1] == ["one", "two", "three"]
    assert read(TaskLocation(regions=("us-east-1",), edge=True))[1] == []
    assert read(NOWHERE)[1] == ["one", "two", "three"]


def test_unreachable_region_costs_a_bounded_wait(regions: Regions) -> None:
    """With the task's region out of reach the reader reports that, shows the rest, and does not hang."""
    trigger = f"logs/{PATH}/20250820T120500.000000Z-0-trigger-4/full.log"
    regions.store("us-east-1").put(trigger, b"triggered\n")
    regions.describe(f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    sources, lines = read(IN_EU)
    assert lines == ["triggered"]
    assert any("The logs of region eu-west-1 cannot be read now" in source for source in sources)
    assert time.monotonic() - started < 30


def test_upload_joins_the_workers_segments(regions: Regions, tmp_path: Path) -> None:
    """A trigger's log goes to the home region's bucket and is read in its place in time."""
    before, after = (f"logs/{PATH}/20250820T{hour}0000.000000Z-1-a/full.log" for hour in ("12", "14"))
    regions.store("eu-west-1").put(before, b"deferred\n")
    regions.store("eu-west-1").put(after, b"resumed\n")
    line = json.dumps({"timestamp": "2025-08-20T13:00:00Z", "event": "fired"})
    local = tmp_path / "airflow-logs" / f"{PATH}.trigger.4.log"
    local.parent.mkdir(parents=True)
    local.write_text(line + "\n")
    RegionalLogs().upload(f"{PATH}.trigger.4.log", SimpleNamespace(id="0198"))
    assert read(IN_EU)[1] == ["deferred", line, "resumed"]


def test_large_log_is_streamed(regions: Regions) -> None:
    """A log of many megabytes comes line by line; the first line does not wait for the last."""
    segment = f"logs/{PATH}/20250820T120000.000000Z-1-a"
    # 100,000 lines of 99 bytes: about 10 MB.
    text = b"".join(b"%07d %s\n" % (number, b"x" * 90) for number in range(100_000))
    regions.store("eu-west-1").put(f"{segment}/full.log", text)
    _, streams = RegionalLogs(locate=lambda _: IN_EU).read(PATH, SimpleNamespace(state="success"))
    assert streams is not None
    assert next(streams[0]).startswith("0000000 ")
    assert sum(1 for _ in streams[0]) == 99_999
