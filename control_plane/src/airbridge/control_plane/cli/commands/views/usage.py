"""``airbridge usage``: what work items used, by team, DAG, region and pool."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from airbridge.control_plane.cli import connection, data_source, output
from airbridge.control_plane.cli.arguments import Json
from airbridge.control_plane.cli.data_source import FromDatabase
from airbridge.control_plane.read_model.history.event_text import size_text

_BY: Final = ("team", "dag", "region", "pool")
_MOVED: Final = ("xcom_bytes", "log_bytes", "code_bytes")
_AMOUNTS: Final = ("items", "slot_seconds", "cpu_seconds", "peak_memory_bytes", *_MOVED, "share")
_COLUMNS: Final = ("work items", "slot-hours", "share", "CPU hours", "peak memory", "XComs", "logs", "code")
_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=connection.ConnectedCommand,
        epilog="Examples: airbridge usage --since 7d;  airbridge usage --by team,region --csv > usage.csv;  "
        "airbridge usage --by dag --since 2026-01-01T00:00:00Z --until 2026-02-01T00:00:00Z --json",
    )(usage)


def usage(  # noqa: PLR0917 - typer fills them by name
    context: typer.Context,
    by: Annotated[str, typer.Option(help="What to group by: team, dag, region, pool, or several.")] = "team",
    since: Annotated[
        str, typer.Option(help="Start of the period: 90m, 24h, 7d, or a time (ISO 8601 with an offset).")
    ] = "24h",
    until: Annotated[str | None, typer.Option(help="End of the period, written alike; now if unset.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
    database: FromDatabase = False,
    json: Json = False,
) -> None:
    """Show what work items used: slot-seconds from claim to report, CPU time and peak memory of their processes, and bytes moved.

    A work item counts whole at the time it ended; those that run count until now. Days (UTC) whose work items the retention has
    deleted count whole, in the period in which they end: adjoining periods add up.
    """
    if csv and json:
        raise typer.BadParameter("choose one of --csv and --json", param_hint="--csv")
    asked = {"by": ",".join(_groups(by)), "since": _time(since, "--since")}
    if until is not None:
        asked["until"] = _time(until, "--until")
        if datetime.fromisoformat(asked["until"]) <= datetime.fromisoformat(asked["since"]):
            raise typer.BadParameter(f"{until!r} is not after --since {since!r}", param_hint="--until")
    with data_source.reader(context, database=database) as reader:
        found = reader.usage(**asked)
    if json:
        output.emit_json(found)
    elif csv:
        output.emit_text(as_csv(found).rstrip("\n"))
    else:
        console = output.results()
        first, last = (
            f"{datetime.fromisoformat(found[each]):%Y-%m-%d %H:%M:%S}" for each in ("since", "until")
        )
        console.print(f"{first} to {last} UTC")
        console.print(output.table(None, (*found["by"], *_COLUMNS), _rows(found)))


def as_csv(found: dict[str, Any]) -> str:
    """Return a usage document's lines as CSV, with a header; units are those of the JSON."""
    written = io.StringIO()
    columns = (*found["by"], *_AMOUNTS)
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    for line in found["lines"]:
        writer.writerow({name: line.get(name, 0) for name in columns})
    return written.getvalue()


def _groups(given: str) -> list[str]:
    names = [each.strip() for each in given.split(",")]
    for name in names:
        if name not in _BY:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(_BY)}", param_hint="--by")
    return list(dict.fromkeys(names))


def _time(given: str, option: str) -> str:
    """Return a time in ISO 8601, from one or from a span before now."""
    span = re.fullmatch(r"([0-9]{1,6})([mhd])", given)
    try:
        if span:
            return (datetime.now(UTC) - int(span[1]) * _UNITS[span[2]]).isoformat()
        parsed = datetime.fromisoformat(given)
    except OverflowError as error:
        raise typer.BadParameter(f"{given!r} is before the year 1", param_hint=option) from error
    except ValueError as error:
        raise typer.BadParameter(
            f"{given!r} is no time; write 90m, 24h, 7d or 2026-01-31T00:00:00Z", param_hint=option
        ) from error
    if parsed.tzinfo is None:
        raise typer.BadParameter(f"{given!r} has no offset; end it in Z for UTC", param_hint=option)
    return parsed.isoformat()


def _rows(found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for line in found["lines"]:
        yield (*(line[each] for each in found["by"]), *_amounts(line, line["share"]))
    if len(found["lines"]) > 1:
        yield ("total", *("" for _ in found["by"][1:]), *_amounts(found["total"], 1.0))


def _amounts(of: dict[str, Any], share: float) -> tuple[str, ...]:
    return (
        f"{of['items']}",
        f"{of['slot_seconds'] / 3600:.3f}",
        f"{share:.1%}",
        f"{of['cpu_seconds'] / 3600:.3f}",
        f"{of['peak_memory_bytes'] / 2**20:.0f} MiB" if of["peak_memory_bytes"] else "",
        # Absent in the answer of a gateway of an earlier version.
        *(size_text(of[name]) if of.get(name) else "" for name in _MOVED),
    )
