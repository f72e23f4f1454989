"""Speed of the dashboard with large tables, and the cost of many live browsers.

``make dashboard-bench`` writes 10,000 work items and 1,000 workers into a Postgres of its own, starts Airflow's api-server over
it, and measures:

- each page with an empty cache (every answer is computed): the time over loopback, and the api-server's own;
- 20 open browsers for a minute, each polling its page every 5 s as `dashboard.js` does, while the workers send
  heartbeats, so that there is something new each time: the processor time of the api-server, less what it uses idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support import airflow_home

airflow_home.isolate()

import httpx  # noqa: E402 - Airflow reads its home when it is imported
from sqlalchemy import text  # noqa: E402
from tests.support import api_server, fleet, postgres  # noqa: E402
from tests.support.airflow_home import Metadata  # noqa: E402
from tests.support.api_server import ApiServer  # noqa: E402
from tests.support.fleet import Fleet  # noqa: E402

PAGES = {
    "regions": "/",
    "workers": "/workers",
    "workers, silent ones": "/workers?standing=silent",
    "workers, last page": "/workers?page=21",
    "worker": "/workers/us-east-1-default-1",
    "work": "/work",
    "work, waiting": "/work?state=open",
    "work, search": "/work?q=train_model&outcome=failed",
    "work, page 150": "/work?page=150",
    "parity": "/parity",
    "audit": "/audit",
    "audit, events": "/audit?source=events",
}
POLL_SECONDS = 5.0
FORGOTTEN_SECONDS = 2.1
"""After this long the dashboard computes a page anew."""
HEARTBEAT_SECONDS = 10.0


@dataclass(frozen=True)
class Timing:
    """Milliseconds from the request to the whole answer, over loopback, and of the api-server's processor."""

    page: str
    cpu_ms: float
    median_ms: float
    worst_ms: float
    kilobytes: float


@dataclass(frozen=True)
class Load:
    """Cost of open browsers. Percentages are of one processor core."""

    browsers: int
    seconds: float
    requests: int
    unchanged: int
    idle_percent: float
    busy_percent: float

    @property
    def cost_percent(self) -> float:
        """CPU that the browsers add to the api-server's idle use."""
        return self.busy_percent - self.idle_percent


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--browsers", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=7, help="how often each page is asked for")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the browsers look")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with _site(chosen.workers, chosen.items) as (server, written, metadata):
        timings = _timings(server, written, chosen.repeat)
        load = _load(server, written, metadata, chosen.browsers, chosen.seconds)
    if chosen.json:
        json.dump({"pages": [asdict(each) for each in timings], "load": asdict(load)}, sys.stdout, indent=2)
    else:
        _print(timings, load)


@contextmanager
def _site(workers: int, items: int) -> Iterator[tuple[ApiServer, Fleet, Metadata]]:
    with ExitStack() as stack:
        database = stack.enter_context(postgres.serve())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        name = database.create()
        airflow_home.migrate(database.url(name))
        metadata = stack.enter_context(airflow_home.pointed_at(database.url(name)))
        with metadata.session() as session:
            written = fleet.seed(session, workers=workers, items=items)
            session.execute(text("ANALYZE"))
            session.commit()
        settings = fleet.settings(directory)
        server = api_server.serve(database.url(name), directory / "home", settings=settings)
        yield stack.enter_context(server), written, metadata


def _pages(written: Fleet) -> dict[str, str]:
    names = httpx.QueryParams({"dag": written.dag_id, "run": written.run_id, "task": written.done})
    return {**PAGES, "timeline": f"/timeline?{names}"}


def _timings(server: ApiServer, written: Fleet, repeat: int) -> list[Timing]:
    pages = _pages(written)
    taken: dict[str, list[float]] = {name: [] for name in pages}
    spent: dict[str, list[float]] = {name: [] for name in pages}
    sizes: dict[str, int] = {}
    with server.client("admin") as client:
        for path in pages.values():
            client.get(path).raise_for_status()
        for _ in range(repeat):
            time.sleep(FORGOTTEN_SECONDS)
            for name, path in pages.items():
                before, began = server.cpu_seconds(), time.perf_counter()
                answer = client.get(path)
                taken[name].append((time.perf_counter() - began) * 1000)
                spent[name].append((server.cpu_seconds() - before) * 1000)
                answer.raise_for_status()
                sizes[name] = len(answer.content)
    return [
        Timing(
            page=name,
            cpu_ms=round(statistics.median(spent[name]), 1),
            median_ms=round(statistics.median(times), 1),
            worst_ms=round(max(times), 1),
            kilobytes=round(sizes[name] / 1000, 1),
        )
        for name, times in taken.items()
    ]


def _load(server: ApiServer, written: Fleet, metadata: Metadata, browsers: int, seconds: float) -> Load:
    idle = _percent(server, min(seconds, 20.0))
    over, counts = threading.Event(), {"requests": 0, "unchanged": 0}
    paths = list(_pages(written).values())
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client("viewer")) for _ in range(browsers)]
        threads = [
            threading.Thread(
                target=_browse, args=(client, paths[number % len(paths)], number / browsers, over, counts)
            )
            for number, client in enumerate(clients)
        ]
        threads.append(threading.Thread(target=_beat, args=(metadata, over)))
        for thread in threads:
            thread.start()
        time.sleep(POLL_SECONDS)
        counts.update(requests=0, unchanged=0)
        busy = _percent(server, seconds)
        asked = dict(counts)
        over.set()
        for thread in threads:
            thread.join()
    return Load(browsers, seconds, asked["requests"], asked["unchanged"], idle, busy)


def _percent(server: ApiServer, seconds: float) -> float:
    before, began = server.cpu_seconds(), time.perf_counter()
    time.sleep(seconds)
    return round((server.cpu_seconds() - before) / (time.perf_counter() - began) * 100, 2)


def _browse(
    client: httpx.Client, path: str, share: float, over: threading.Event, counts: dict[str, int]
) -> None:
    """Poll the live part of a page as a browser does, with the etag of the last answer."""
    etag = ""
    over.wait(POLL_SECONDS * share)
    while not over.wait(POLL_SECONDS):
        answer = client.get(path, headers={"HX-Request": "true", "If-None-Match": etag})
        etag = answer.headers.get("etag", etag)
        counts["requests"] += 1
        counts["unchanged"] += answer.status_code == 304


def _beat(metadata: Metadata, over: threading.Event) -> None:
    """Let a tenth of the workers send a heartbeat each second, as a thousand of them do at the default interval."""
    part = 0
    while not over.wait(1.0):
        part = (part + 1) % int(HEARTBEAT_SECONDS)
        with metadata.session() as session:
            session.execute(
                text(
                    "UPDATE airbridge_worker SET last_heartbeat_at = now(), slots_used = floor(random() * 9)"
                    " WHERE abs(hashtext(id)) % 10 = :part AND region <> 'ap-south-1'"
                ),
                {"part": part},
            )
            session.commit()


def _print(timings: list[Timing], load: Load) -> None:
    print("| page | median | worst | processor | size |\n| --- | --- | --- | --- | --- |")
    for each in timings:
        times = f"{each.median_ms:.0f} ms | {each.worst_ms:.0f} ms | {each.cpu_ms:.0f} ms"
        print(f"| {each.page} | {times} | {each.kilobytes:.0f} kB |")
    print(
        f"\n{load.browsers} browsers for {load.seconds:.0f} s: {load.requests} requests, {load.unchanged} of them unchanged;"
        f" the api-server used {load.busy_percent:.1f} % of a core, {load.idle_percent:.1f} % without them:"
        f" they cost {load.cost_percent:.1f} %"
    )


if __name__ == "__main__":
    main()
