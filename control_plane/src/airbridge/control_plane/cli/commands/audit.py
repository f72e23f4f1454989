"""``airbridge audit``: list audit rows (grants, denials, changes), or verify the hash chain."""

from __future__ import annotations

import json as json_module
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.cli.arguments import Json
from airbridge.control_plane.cli.exit_codes import Exit
from airbridge.control_plane.operator_client import OperatorClient
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.ledger.chain import ChainLink, Checker, Entry, Sealed

_COLUMNS = ("at", "event", "verdict", "actor", "from", "rule", "detail")
_PART = 1_000
# Seconds. A row without a seal for longer was hidden from the sealer, or no gateway runs.
LATE_SECONDS = 60.0

Verify = Annotated[bool, typer.Option("--verify", help="Check the hash chain over the whole trail.")]
Token = Annotated[
    str | None,
    typer.Option(
        help="Only what was done with this token (its id, see 'airbridge token list') and the tokens made under it."
    ),
]
Children = Annotated[
    bool, typer.Option("--children/--no-children", help="With --token: include the tokens made under it.")
]
Anchor = Annotated[
    list[Path],
    typer.Option(
        help="With --verify: a file of links that were saved earlier, one JSON object with seq and hash a line: "
        "the output of --verify --json, or a gateway's log. Detects a truncated audit trail."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=connection.ConnectedCommand,
        epilog="Examples: airbridge audit --verdict denied --since 2026-01-31T00:00:00Z;  "
        "airbridge audit --token 5f2c9e1a7b3d4c60;  airbridge audit --event 'token.*' --json;  airbridge audit --verify --anchor gateway.log",
    )(audit)


def audit(  # noqa: PLR0917 - typer fills them by name
    context: typer.Context,
    event: Annotated[str | None, typer.Option(help="Only these events; * stands for anything.")] = None,
    verdict: Annotated[str | None, typer.Option(help="granted, denied or changed.")] = None,
    actor: Annotated[
        str | None, typer.Option(help="Only rows of these actors; * stands for anything.")
    ] = None,
    worker: Annotated[str | None, typer.Option(help="Only rows about this worker.")] = None,
    region: Annotated[str | None, typer.Option(help="Only rows about this region.")] = None,
    item: Annotated[str | None, typer.Option(help="Only this work item.")] = None,
    ti: Annotated[str | None, typer.Option(help="Only this task instance.")] = None,
    trace: Annotated[str | None, typer.Option(help="Only this trace id.")] = None,
    since: Annotated[str | None, typer.Option(help="From this time on (ISO 8601 with an offset).")] = None,
    until: Annotated[str | None, typer.Option(help="Up to this time.")] = None,
    token: Token = None,
    children: Children = True,
    limit: Annotated[
        int, typer.Option(min=1, max=100_000, help="Maximum number of rows, newest first.")
    ] = 100,
    verify: Verify = False,
    anchor: Anchor = [],  # noqa: B006 - typer copies it
    json: Json = False,
) -> None:
    """Show the audit trail, or verify that no row was altered, removed or reordered.

    With --verify, exit status 1 means that the check found a fault.
    """
    given = {
        "event": event,
        "verdict": verdict,
        "actor": actor,
        "worker": worker,
        "region": region,
        "item": item,
        "ti": ti,
        "trace": trace,
        "since": since,
        "until": until,
        **_token_query(token, children),
    }
    with connection.client(context) as client:
        if verify:
            _verify(client, [*anchors(anchor), *_anchors_kept(client)], json)
            return
        rows = _rows(client, {name: value for name, value in given.items() if value is not None}, limit)
    if json:
        output.emit_json(rows)
    else:
        output.results().print(output.table(None, _COLUMNS, map(_row, rows)))


def anchors(files: list[Path]) -> list[ChainLink]:
    """Read saved links. Raises `ConfigurationError` for a file that holds none."""
    found: list[ChainLink] = []
    for path in files:
        try:
            links = _links(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--anchor {path}: {error}; it must be a readable text file") from error
        if not links:
            raise ConfigurationError(
                f"--anchor {path} holds no link; expected what 'airbridge audit --verify --json' printed, "
                "or lines that hold a JSON object with seq and hash"
            )
        found += links
    return found


def _token_query(token: str | None, children: bool) -> dict[str, str | None]:
    return {"token": token, "children": None if children else "false"}


def _anchors_kept(client: OperatorClient) -> list[ChainLink]:
    """Return the anchors that the gateway reads from where it has written them."""
    found = map(_link, client.get("audit/anchors")["anchors"])
    return [link for link in found if link]


def _links(text: str) -> list[ChainLink]:
    whole = _object(text)
    objects = [whole] if whole else map(_object, text.splitlines())
    return [link for each in objects if (link := _link(each))]


def _object(text: str) -> dict[str, Any]:
    start = text.find("{")
    try:
        data = json_module.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _link(data: dict[str, Any]) -> ChainLink | None:
    # The output of --verify --json has the link under "end"; a gateway's log line is the link itself.
    end = data.get("end", data)
    seq, digest = (end.get("seq"), end.get("hash")) if isinstance(end, dict) else (None, None)
    return ChainLink(seq, digest) if isinstance(seq, int) and isinstance(digest, str) else None


def _rows(client: OperatorClient, wanted: dict[str, str], limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while len(rows) < limit:
        size = min(_PART, limit - len(rows))
        more = {"before": str(rows[-1]["id"])} if rows else {}
        part = client.get("audit", **wanted, **more, limit=str(size))["rows"]
        rows += part
        if len(part) < size:
            break
    return rows


def _verify(client: OperatorClient, known: list[ChainLink], json: bool) -> None:
    checker, waiting = _check(client, known)
    findings = [
        {"fault": str(each.fault), "seq": each.seq, "detail": each.detail} for each in checker.finish()
    ]
    if waiting["count"] and waiting["oldest_seconds"] > LATE_SECONDS:
        text = f"{waiting['count']} rows have no seal, the oldest for {waiting['oldest_seconds']:.0f} s"
        findings.append({"fault": "unsealed", "seq": checker.end.seq, "detail": text})
    end = {"seq": checker.end.seq, "hash": checker.end.hash, "at": datetime.now().astimezone().isoformat()}
    _show(findings, end, waiting, json)
    if findings:
        raise typer.Exit(Exit.FAILED)


def _check(client: OperatorClient, known: list[ChainLink]) -> tuple[Checker, dict[str, Any]]:
    checker = Checker(known)
    while True:
        part = client.get("audit/chain", after=str(checker.end.seq), limit=str(_PART))
        checker.read(_sealed(each) for each in part["links"])
        if part["waiting"] is not None:
            return checker, part["waiting"]


def _sealed(data: dict[str, Any]) -> Sealed:
    row = Entry.from_json(data["row"]) if data["row"] else None
    return Sealed(ChainLink(data["seq"], data["hash"]), data["audit_id"], row)


def _show(findings: list[dict[str, Any]], end: dict[str, Any], waiting: dict[str, Any], json: bool) -> None:
    if json:
        output.emit_json({"sound": not findings, "findings": findings, "end": end, "waiting": waiting})
        return
    for finding in findings:
        output.emit_text(f"{finding['fault']} at link {finding['seq']}: {finding['detail']}")
    if not findings:
        output.emit_text(
            f"sound: {end['seq']} links, the last one {end['hash']}; {waiting['count']} rows wait for their seal"
        )


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    place = [row[key] for key in ("worker_id", "ti_id") if row[key]]
    detail = ", ".join([*place, *(f"{key}={value}" for key, value in row["detail"].items())])
    return (row["at"], row["event"], row["verdict"], row["actor"], row["address"], row["rule"], detail)
