"""``airbridge status`` and ``airbridge top``: show the platform on one screen, once or live."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from airbridge.control_plane.cli import connection, data_source, output
from airbridge.control_plane.cli.arguments import Json
from airbridge.control_plane.cli.data_source import FromDatabase
from airbridge.control_plane.local import state
from airbridge.control_plane.local.exceptions import NotRunning
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.state import PlatformState
from airbridge.control_plane.read_model.diagnosis.cause import span

_REGIONS = ("region", "health", "workers", "slots", "waiting", "running", "oldest", "ended (5 min)", "why")
_LIMITS = ("limit", "state", "running", "starts (1 min)", "waiting", "pools")
_WORKERS = (
    "worker",
    "region",
    "pool",
    "standing",
    "slots",
    "version",
    "journal",
    "heartbeat",
    "skew",
    "certificate",
    "why",
)
# Without --all, so many regions or workers are listed; of more, only those in trouble, and the totals.
SHOWN = 12
# With --all, workers beyond these are counted.
SHOWN_WORKERS = 40


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(cls=connection.ConnectedCommand, epilog="Example: airbridge status --json")(status)
    app.command(cls=connection.ConnectedCommand, epilog="Example: airbridge top --every 2")(top)


def status(
    context: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="List all regions, and workers that are well.")
    ] = False,
    database: FromDatabase = False,
    json: Json = False,
) -> None:
    """Show the platform on one screen: what is in trouble, then regions, work and workers; of a large platform the totals."""
    with data_source.reader(context, database=database) as reader:
        found = reader.status()
    given = connection.options(context)
    local = _local(given.directory) if given.url is None and not database else None
    if json:
        output.emit_json({"platform": local.model_dump(mode="json") if local else None, **found})
        return
    console = output.results()
    if local is not None:
        console.print(_components(local))
        console.print()
    console.print(screen(found, everything=everything))


def top(
    context: typer.Context,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between refreshes.")] = 2.0,
    times: Annotated[int, typer.Option(min=0, help="Refreshes before it ends; 0 for no end.")] = 0,
    database: FromDatabase = False,
    json: Json = False,
) -> None:
    """Show the platform live, until Ctrl-C. With --json, print one document a line per refresh."""
    with data_source.reader(context, database=database) as reader:
        samples = _poll(reader, every, times)
        console = output.results()
        if json or not console.is_terminal:
            for found in samples:
                if json:
                    output.emit_json_line(found)
                else:
                    console.print(screen(found))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for found in samples:
                live.update(screen(found), refresh=True)


def _poll(reader: data_source.Reader, every: float, times: int) -> Iterator[dict[str, Any]]:
    taken = 0
    while True:
        yield reader.status()
        taken += 1
        if taken == times:
            return
        time.sleep(every)


def screen(found: dict[str, Any], *, everything: bool = False) -> RenderableType:
    """Return a status document as tables for the terminal: all of a small platform, the troubles and totals of a large one."""
    now = datetime.fromisoformat(found["now"])
    parts: list[RenderableType] = [Text(_summary(found, now)), Text(_totals(found))]
    regions = found["regions"]
    if not everything and len(regions) > SHOWN:
        regions = [row for row in regions if row["troubled"]]
    parts += _listed(regions, len(found["regions"]), _REGIONS, lambda row: _region(row, now), "regions")
    parts += _limits(found)
    parts += _workers(found, everything=everything)
    return Group(*parts)


def _limits(found: dict[str, Any]) -> list[RenderableType]:
    """Return the limits, those that hold work back first; nothing without limits."""
    # Absent in the answer of a gateway of an earlier version.
    rows = sorted(found.get("limits", []), key=lambda row: (not row["full"], -row["waiting"]))
    if not rows:
        return []
    parts: list[RenderableType] = [Text(), output.table(None, _LIMITS, map(_limit, rows[:SHOWN]))]
    hidden = len(rows) - SHOWN
    return [*parts, Text(f"... and {hidden} more limits (--json)")] if hidden > 0 else parts


def _limit(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["name"],
        "full" if row["full"] else "free",
        row["running"] if row["max_running"] is None else f"{row['running']}/{row['max_running']}",
        "" if row["starts_per_minute"] is None else f"{row['starts']}/{row['starts_per_minute']}",
        row["waiting"],
        ", ".join(row["pools"]),
    )


def _workers(found: dict[str, Any], *, everything: bool) -> list[RenderableType]:
    total = found["workers_total"]
    if everything or total <= SHOWN:
        listed = output.table(None, _WORKERS, map(_worker, found["workers"][:SHOWN_WORKERS]))
        parts: list[RenderableType] = [Text(), listed]
        hidden = total - min(len(found["workers"]), SHOWN_WORKERS)
        if hidden:
            parts.append(Text(f"... and {hidden} more workers (airbridge worker list)"))
        return parts
    troubled = found["workers_troubled"][:SHOWN]
    hidden = found["workers_troubled_total"] - len(troubled)
    parts = _listed(troubled, total, _WORKERS, _worker, "workers")
    return [*parts, Text(f"... and {hidden} more in trouble (airbridge worker list)")] if hidden else parts


def _listed(
    rows: list[dict[str, Any]],
    total: int,
    columns: tuple[str, ...],
    row: Callable[[dict[str, Any]], tuple[Any, ...]],
    what: str,
) -> list[RenderableType]:
    """Return a table of the rows, or the sentence that there is none in trouble."""
    if not rows and total:
        return [Text(), Text(f"none of {total} {what} is in trouble (--all lists them)")]
    return [Text(), output.table(None, columns, map(row, rows))]


def _totals(found: dict[str, Any]) -> str:
    regions = found["regions"]

    def add(name: str) -> int:
        return sum(row[name] for row in regions)

    bad = sum(row["troubled"] for row in regions)
    failed = sum(pool["failed"] for row in regions for pool in row["pools"])
    return (
        f"regions {len(regions)}, {bad} in trouble   workers {found['workers_total']}, {found['workers_troubled_total']} in trouble   "
        f"slots {add('slots_used')}/{add('slots')}   waiting {add('waiting')}   running {add('running')}   "
        f"ended (5 min) {add('settled')}, {failed} bad"
    )


def _summary(found: dict[str, Any], now: datetime) -> str:
    there = [each for each in found["gateways"] if each["alive"]]
    gateways = f"{len(there)} up" if there else "none up"
    scheduler = found["scheduler_seen_at"]
    seen = f"seen {_ago(scheduler, now)} ago" if scheduler else "never seen"
    return f"{now:%Y-%m-%d %H:%M:%S} UTC   scheduler {seen}   gateways {gateways}"


def _region(row: dict[str, Any], now: datetime) -> tuple[Any, ...]:
    failed = sum(pool["failed"] for pool in row["pools"])
    return (
        f"{row['name']} (home)" if row["home"] else row["name"],
        row["health"],
        row["alive"],
        f"{row['slots_used']}/{row['slots']}",
        row["waiting"],
        row["running"],
        _ago(row["oldest_waiting_since"], now) if row["oldest_waiting_since"] else "",
        f"{row['settled']}, {failed} bad" if failed else row["settled"],
        row["why"],
    )


def _worker(row: dict[str, Any]) -> tuple[Any, ...]:
    left, silent = row["certificate_seconds_left"], row["silent_seconds"]
    return (
        row["id"],
        row["region"],
        row["pool"],
        row["standing"],
        f"{row['slots_used']}/{row['slots']}",
        row["airbridge"],
        row["journal_pending"],
        "never" if silent is None else f"{_span(silent)} ago",
        f"{row['clock_skew_seconds']:+.2f} s",
        "" if left is None else f"{_span(left)} left" if left > 0 else f"ended {_span(-left)} ago",
        row["why"],
    )


def _ago(then: str, now: datetime) -> str:
    return _span((now - datetime.fromisoformat(then)).total_seconds())


def _span(seconds: float) -> str:
    return span(timedelta(seconds=seconds))


def _local(directory: Path) -> PlatformState | None:
    try:
        return state.read(StateDir(directory))
    except NotRunning:
        return None


def _components(now: PlatformState) -> RenderableType:
    rows = [(c.name, c.phase.value, c.pid, c.restarts, c.url) for c in now.components]
    return output.table(
        f"{now.root}: {now.phase.value}, process {now.pid}",
        ("component", "state", "pid", "restarts", "url"),
        rows,
    )
