"""``airbridge trace``: show a task's timeline and why it is not running."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import connection, data_source, output
from airbridge.control_plane.cli.arguments import Json
from airbridge.control_plane.cli.data_source import FromDatabase
from airbridge.control_plane.read_model.history.clock_skew import NOISE_SECONDS

_COLUMNS = ("", "time", "took", "side", "who", "what")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=connection.ConnectedCommand,
        epilog="Examples: airbridge trace my_dag manual__2026-01-31T00:00:00+00:00 my_task;  "
        "airbridge trace my_dag latest my_task --map-index 3 --json",
    )(trace)


def trace(  # noqa: PLR0917 - typer fills them by name
    context: typer.Context,
    dag_id: Annotated[str, typer.Argument(metavar="DAG", help="The DAG's id.")],
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or 'latest'.")],
    task_id: Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")],
    map_index: Annotated[int, typer.Option(help="Map index of a mapped task's instance.")] = -1,
    database: FromDatabase = False,
    json: Json = False,
) -> None:
    """Show a task's events in the control plane and at the edge, and why it is not running, in one sentence."""
    with data_source.reader(context, database=database) as reader:
        found = reader.timeline(dag_id, None if run_id == "latest" else run_id, task_id, map_index)
    if json:
        output.emit_json(found)
        return
    console = output.results()
    for line in headline(found):
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    console.print(output.table(None, _COLUMNS, map(_row, found["steps"])))
    for line in _footnotes(found):
        console.print(line, markup=False, soft_wrap=True)


def headline(found: dict[str, Any]) -> Iterator[str]:
    """Yield the task's name and state, the cause in one sentence, and its notes."""
    yield f"{found['task']}  ({found['state'] or 'no state'})"
    cause = found["cause"]
    yield f"{cause['sentence']}  [{cause['code']}]"
    for note in cause["notes"]:
        yield f"note: {note['sentence']}  [{note['code']}]"


def _row(step: dict[str, Any]) -> tuple[Any, ...]:
    # Absent in the answer of a gateway of an earlier version.
    of = "trigger: " if step.get("of_trigger") else ""
    return (
        "!" if step["trouble"] else "",
        datetime.fromisoformat(step["at"]).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        format_duration(step["seconds"]),
        step["side"],
        step["worker"] or step["actor"],
        f"{of}{step['what']}",
    )


def format_duration(seconds: float | None) -> str:
    """Return a duration in milliseconds below one second, else in seconds."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _footnotes(found: dict[str, Any]) -> Iterator[str]:
    for worker, skew in found["skews"].items():
        side = "ahead" if skew > 0 else "behind"
        how = (
            "its times are corrected by that"
            if abs(skew) > NOISE_SECONDS
            else "its times are shown as they are"
        )
        yield f"{worker}'s clock is {abs(skew):.3f} s {side}; {how}"
    if found["trace_id"]:
        yield f"trace {found['trace_id']}"
    if not found["complete"]:
        yield "only the newest events are shown"
