"""``airbridge policy``: is the policy right, and what does it say?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import arguments, connection, output
from airbridge.control_plane.cli.arguments import Directory, Json
from airbridge.control_plane.cli.connection import CaFile, TokenFile, Url
from airbridge.control_plane.cli.exits import Exit
from airbridge.control_plane.local.layout import StateDir
from airbridge.executor.exceptions import ConfigurationError

File = Annotated[
    Path | None,
    typer.Option(
        "--file", envvar="AIRBRIDGE_POLICY_FILE", help="The policy.", show_default="the local platform's"
    ),
]


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(
        help="What tasks may do beyond their own.", no_args_is_help=True, rich_markup_mode="rich"
    )
    group.command(epilog="Example: airbridge policy check --file policy.toml --regions-file regions.toml")(
        check
    )
    group.command(
        epilog="Examples: airbridge policy explain --worker eu-west-1-default-1 --dag etl --connection warehouse;  "
        "airbridge policy explain --file policy.toml --region eu-west-1 --dag etl --trigger cleanup"
    )(explain)
    group.command(epilog="Example: airbridge policy show --json")(show)
    return group


def check(
    file: File = None,
    regions_file: Annotated[
        Path | None,
        typer.Option(help="A region catalogue: rules may name no region or pool that is not in it."),
    ] = None,
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Check a policy file: every key, every name. Exit status 2 means that a gateway would not take it."""
    from airbridge.control_plane import rules
    from airbridge.executor.regions import Catalogue

    policy = rules.RulePolicy.read(_file(file, directory))
    if regions_file is not None:
        wrong = list(rules.unknown_places(policy, Catalogue.read(regions_file)))
        if wrong:
            raise ConfigurationError("\n".join(wrong))
    warnings = list(rules.warnings(policy))
    for warning in warnings:
        output.messages().print(f"warning: {warning}", markup=False, soft_wrap=True)
    if json:
        names = [rule.name for rule in policy.rules]
        output.emit_json(
            {"file": policy.source, "digest": policy.digest, "rules": names, "warnings": warnings}
        )
    else:
        output.emit_text(f"{policy.source}: {len(policy.rules)} rules, sha256 {policy.digest}")


def explain(  # noqa: PLR0917 - typer fills them by name
    dag: Annotated[str, typer.Option(help="The DAG whose task asks.")],
    worker: Annotated[
        str | None, typer.Option(help="The worker that runs it; the gateway is asked where it is.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Instead of --worker: the region.")] = None,
    pool: Annotated[str, typer.Option(help="With --region: the pool.")] = "default",
    queue: Annotated[str | None, typer.Option(help="May it be run from this queue?")] = None,
    connection_id: Annotated[
        str | None, typer.Option("--connection", help="May it read this connection?")
    ] = None,
    variable: Annotated[str | None, typer.Option(help="May it read this variable?")] = None,
    write_variable: Annotated[str | None, typer.Option(help="May it write this variable?")] = None,
    xcoms_of: Annotated[str | None, typer.Option(help="May it read the XComs of this DAG?")] = None,
    runs_of: Annotated[str | None, typer.Option(help="May it read the runs of this DAG?")] = None,
    trigger: Annotated[str | None, typer.Option(help="May it trigger this DAG?")] = None,
    asset: Annotated[str | None, typer.Option(help="May it read this asset (name or URI)?")] = None,
    change_asset: Annotated[str | None, typer.Option(help="May it change this asset?")] = None,
    file: File = None,
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Say whether a task may do one thing, by which rule, or which rule would allow it.

    Exit status 5 means that it may not.
    """
    from airbridge.control_plane import rules
    from airbridge.control_plane.policy import Access, TaskFacts

    asked = {
        "work:claim": queue,
        "connections:read": connection_id,
        "variables:read": variable,
        "variables:write": write_variable,
        "xcoms:read": xcoms_of,
        "dag_runs:read": runs_of,
        "dag_runs:write": trigger,
        "assets:read": asset,
        "assets:change": change_asset,
    }
    chosen = [(action, name) for action, name in asked.items() if name is not None]
    if len(chosen) != 1:
        raise ConfigurationError("ask for one thing: --connection, --variable, --queue, ... (see --help)")
    if worker is not None:
        with connection.client(directory, url, token_file, ca_file) as client:
            region, pool = _place(client.get("workers")["workers"], worker)
    if region is None:
        raise ConfigurationError("--worker or --region must be given: rules are per region and pool")
    [(action, name)] = chosen
    of_dag = rules.KEYS[action].of_dag
    access = Access(action, dag_id=name) if of_dag else Access(action, name)
    policy = rules.RulePolicy.read(_file(file, directory))
    task = TaskFacts("", "", dag, "", "", -1, region, pool, worker or "", queue or "")
    ruling = policy.judge(task, access)
    steps = rules.considered(policy, region, pool, dag, access)
    _show(dag, (region, pool), ruling, steps, json)
    if not ruling.allowed:
        raise typer.Exit(Exit.REFUSED)


def show(
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Show the policy that the gateway goes by now."""
    with connection.client(directory, url, token_file, ca_file) as client:
        found = client.get("policy")
    if json:
        output.emit_json(found)
        return
    if found["file"] is None:
        output.emit_text("[airbridge] policy_file is not set: nothing beyond a task's own is allowed")
        return
    output.emit_text(f"{found['file']}, sha256 {found['digest']}")
    for rule in found["rules"]:
        output.emit_text(f"  {rule['name']}: {rule['comment']}".rstrip(": "))


def _file(file: Path | None, directory: Path) -> Path:
    return file if file is not None else StateDir(directory).policy_file


def _place(workers: list[dict[str, Any]], name: str) -> tuple[str, str]:
    for worker in workers:
        if worker["id"] == name:
            return worker["region"], worker["pool"]
    known = ", ".join(sorted(worker["id"] for worker in workers)) or "none"
    raise ConfigurationError(f"--worker {name}: there is no such worker; known: {known}")


def _show(dag: str, place: tuple[str, str], ruling: Any, steps: list[Any], json: bool) -> None:
    if json:
        output.emit_json(
            {
                "allowed": ruling.allowed,
                "rule": ruling.rule if ruling.allowed else None,
                "dag": dag,
                "region": place[0],
                "pool": place[1],
                "why": ruling.why,
                "rules": [{"rule": each.rule, "allows": each.allows, "why": each.why} for each in steps],
            }
        )
        return
    output.emit_text(f"allowed by rule {ruling.rule!r}" if ruling.allowed else f"denied. {ruling.why}")
    for each in steps:
        output.emit_text(f"  {'allows' if each.allows else 'does not'}  {each.rule}: {each.why}")
