"""Five truths, planted in a running platform: the pages, `airbridge status --json`, `airbridge trace` and the metrics agree on each.

One platform with four regions and a worker in each; heartbeats and intervals are the defaults. Each truth must be on the
pages within 25 s, and in the output of the commands as soon as it is on the pages.
"""

from __future__ import annotations

import html
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from os import kill
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.witness import TASK, Witness, watching
from tests.chaos.fleet import Fleet, Worker
from tests.support.platform import LocalPlatform, running, wait_for
from tests.support.weather import Network

from airbridge.control_plane.local.services.aws import parse_regions

pytestmark = pytest.mark.timeout(600)

HOME, STOPPED, DRAINED, BLIND = "us-east-1", "eu-west-1", "eu-central-1", "ap-south-1"
DAG_FILE = Path(__file__).parent / "dags" / "truths.py"
WITHIN_SECONDS = 25.0
WITHOUT_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": ""}

_REGION_ROW = r'<tr id="pool-{region}-default">(.*?)</tr>'
_CELL = re.compile(r"<t[dh][^>]*>(.*?)</t[dh]>", re.DOTALL)
_DRAWING = re.compile(r'aria-label="The control plane and its regions\. ([^"]*)"')
_GATEWAYS = re.compile(r"<dt>Gateways</dt><dd>(.*?)</dd>", re.DOTALL)


@dataclass(frozen=True)
class Stage:
    """The platform, a worker in each region, and the witness."""

    platform: LocalPlatform
    witness: Witness
    workers: dict[str, Worker]
    files: Path

    # --- what the pages show ------------------------------------------------------------------------

    def region(self, name: str) -> list[str]:
        """The cells of a region's row on the Regions page, as text."""
        page = self.witness.browser.get("/").raise_for_status().text
        row = re.search(_REGION_ROW.format(region=name), page, re.DOTALL)
        assert row is not None, page
        return [_text(cell) for cell in _CELL.findall(row[1])]

    def link(self, name: str) -> str:
        """The words beside a region in the drawing of the network."""
        drawn = _DRAWING.search(self.witness.browser.get("/").raise_for_status().text)
        assert drawn is not None
        return dict(each.split(": ", 1) for each in html.unescape(drawn[1]).split("; "))[name]

    def gateways(self) -> str:
        """The number of gateways on the Regions page."""
        found = _GATEWAYS.search(self.witness.browser.get("/").raise_for_status().text)
        assert found is not None
        return _text(found[1])

    def worker(self, region: str) -> str:
        """The head of the page of a region's worker: its standing, and why."""
        page = self.witness.browser.get(f"/workers/{self.workers[region].name}").raise_for_status().text
        head = re.search(r'<div class="bar">\s*<p>(.*?)</p>', page, re.DOTALL)
        assert head is not None, page
        return _text(head[1])

    # --- what the commands print --------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The document of `airbridge status --json`."""
        done = self.witness.run("status", "--json")
        assert 0 == done.returncode, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def cause(self, dag_id: str) -> tuple[str, str]:
        """The cause's code and sentence, by `airbridge trace --json`."""
        done = self.witness.run("trace", dag_id, "latest", TASK, "--json")
        assert 0 == done.returncode, done.stderr
        cause = json.loads(done.stdout)["cause"]
        return cause["code"], cause["sentence"]

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of a gauge, as alarms read it."""
        with self.platform.operator() as operator:
            lines = operator.get("/operator/v1/metrics").raise_for_status().text.splitlines()
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in lines:
            head, _, value = line.rpartition(" ")
            if head.startswith(f"{name}{{") and all(each in head for each in wanted):
                return float(value)
        return None

    # --- agreement ----------------------------------------------------------------------------------

    def shown(self, condition: Callable[[], bool], what: str, since: float) -> None:
        """Wait until the pages show a truth, at most 25 s after it was planted."""
        left = WITHIN_SECONDS - (time.monotonic() - since)
        wait_for(condition, f"the pages to show {what}", max(left, 1.0))
        print(f"\n{what}: on the pages after {time.monotonic() - since:.1f} s")

    def agrees(self, region: str, health: str, standing: str, why: str, *, serves: bool = False) -> None:
        """Assert that `status --json` and the metrics give a region and its worker as the pages do."""
        found = self.status()
        [place] = [each for each in found["regions"] if each["name"] == region]
        assert (health, serves) == (place["health"], place["slots"] > 0)
        assert re.search(why, place["why"]), place["why"]
        [worker] = [each for each in found["workers"] if each["id"] == self.workers[region].name]
        assert standing == worker["standing"]
        time.sleep(5.1)  # the gateway reads its gauges at most every 5 s
        assert 1 == self.metric("airbridge_workers", region=region, pool="default", standing=standing)
        assert (self.metric("airbridge_slots", region=region, pool="default") == 0) is not serves

    def names(self, dag_id: str, code: str, sentence: str) -> None:
        """Assert that the Timeline page and `airbridge trace --json` give the cause."""
        page = self.witness.page(dag_id)
        assert page is not None
        for source, (found, text) in (("page", (page.code, page.cause)), ("trace", self.cause(dag_id))):
            print(f"{source}: {text}  [{found}]")
            assert code == found, (source, text)
            assert re.search(sentence, text), (source, text)


def _text(markup: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup))).strip()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Run a platform of four regions; the worker of the last is started without credentials for AWS."""
    regions = parse_regions((HOME, STOPPED, DRAINED, BLIND))
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        platform = stack.enter_context(running(regions=regions, workers_per_region=0))
        platform.add_dag_file(DAG_FILE)
        workers = {}
        for region in (HOME, STOPPED, DRAINED, BLIND):
            fleet = Fleet(platform, network, {"AIRBRIDGE_WORKER_SLOTS": "2"}, region=region)
            stack.callback(fleet.close)
            blind = WITHOUT_CREDENTIALS if region == BLIND else {}
            workers[region] = fleet.add(f"{region}-1", "default", **blind)
            workers[region].start()
        for worker in workers.values():
            worker.wait_started()
        witness = stack.enter_context(watching(platform))
        yield Stage(platform, witness, workers, tmp_path_factory.mktemp("truths"))


def test_no_credentials(stage: Stage) -> None:
    """A worker that cannot read its queue does not serve, and its region says why."""
    planted = time.monotonic()
    why = "Unable to locate credentials"
    stage.platform.trigger("t_blind")
    stage.shown(lambda: why in stage.region(BLIND)[1], "no credentials", planted)
    assert stage.region(BLIND)[1].startswith("queue unreachable")
    assert "queue unreachable" == stage.link(BLIND)
    assert stage.worker(BLIND).startswith("without its queue")
    stage.agrees(BLIND, "no_queue", "no_queue", why)
    stage.names(
        "t_blind", "queue_unreachable", rf"{BLIND}-1 cannot receive from the queue of {BLIND}: .*{why}"
    )


def test_drain(stage: Stage) -> None:
    """A region whose only worker drains is not cut off: its link is fine, and it takes no new work."""
    planted = time.monotonic()
    done = stage.witness.run("worker", "drain", stage.workers[DRAINED].name)
    assert 0 == done.returncode, done.stderr
    stage.platform.trigger("t_drained")
    stage.shown(lambda: stage.link(DRAINED) == "draining", "a drain", planted)
    assert stage.region(DRAINED)[1].startswith("draining")
    assert "draining" == stage.worker(DRAINED)
    stage.agrees(DRAINED, "draining", "draining", r"no worker takes new work: 1 draining")
    stage.names("t_drained", "draining", "has 0 workers that accept work; 1 is draining")


def test_retry(stage: Stage) -> None:
    """An attempt that failed has failed, though Airflow tries again, and the wait for the next attempt is drawn."""
    run_id = stage.platform.trigger("t_retried")
    stage.platform.wait_task("t_retried", run_id, TASK, {"up_for_retry"}, 120)
    planted = time.monotonic()
    stage.shown(lambda: stage.region(HOME)[-1] == "1", "a failed attempt", planted)
    [home] = [each for each in stage.status()["regions"] if each["name"] == HOME]
    assert ("healthy", 1) == (home["health"], home["pools"][0]["failed"])
    stage.names("t_retried", "failed", "^failed on us-east-1-1 .*Airflow has it as up_for_retry$")
    listed = stage.witness.browser.get("/work", params={"outcome": "failed"}).raise_for_status().text
    assert "t_retried" in listed
    drawn = stage.witness.browser.get(
        "/timeline", params={"dag": "t_retried", "run": run_id, "task": TASK}
    ).raise_for_status()
    assert "waiting for retry" in drawn.text


def test_stopped_worker(stage: Stage) -> None:
    """A worker that was killed is stale on every screen, for the task that it held and for the one that waits for it."""
    release = str(stage.files / "never")
    held = stage.platform.trigger("t_held", {"release": release})
    stage.platform.wait_task("t_held", held, TASK, {"running"}, 120)
    stage.workers[STOPPED].stop_all()
    planted = time.monotonic()
    stage.platform.trigger("t_waits")
    stage.shown(lambda: stage.region(STOPPED)[1].startswith("stale"), "a stopped worker", planted)
    assert "stale" == stage.link(STOPPED)
    assert stage.worker(STOPPED).startswith("stale last heartbeat")
    stage.names(
        "t_held", "partition", rf"^held by {STOPPED}-1 .*no heartbeat for \d+ s: disconnected or dead"
    )
    stage.names("t_waits", "partition", r"has 0 connected workers; 1 worker stale")
    stage.agrees(STOPPED, "stale", "stale", "1 worker missed two heartbeats")


def test_killed_gateway(stage: Stage) -> None:
    """Without a gateway no region is healthy; the gateway that follows is counted alone."""
    supervisor = stage.platform.state.pid
    kill(supervisor, signal.SIGSTOP)
    try:
        stage.platform.kill("gateway")
        planted = time.monotonic()
        stage.platform.trigger("t_gateway")
        stage.shown(lambda: stage.gateways() == "none", "a killed gateway", planted)
        assert stage.region(HOME)[1].startswith("no gateway")
        assert "no gateway" == stage.link(HOME)
        found = stage.status()
        assert not any(each["alive"] for each in found["gateways"])
        assert "no_gateway" == found["regions"][0]["health"]
        stage.names("t_gateway", "gateway_down", r"no gateway has run for \d+ s: workers cannot claim")
    finally:
        kill(supervisor, signal.SIGCONT)
    wait_for(lambda: stage.gateways() != "none", "a gateway to follow", 120)
    planted = time.monotonic()
    # The one that was killed is not counted beside it.
    assert "1" == stage.gateways()
    assert 1 == sum(each["alive"] for each in stage.status()["gateways"])
    stage.shown(lambda: stage.region(HOME)[1].startswith("healthy"), "a region that serves again", planted)
