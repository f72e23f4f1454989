"""``airbridge policy``: check, explain and show the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import arguments, connection, output
from airbridge.control_plane.cli.arguments import Directory, Json
from airbridge.control_plane.cli.exit_codes import Exit
from airbridge.control_plane.local.layout import StateDir
from airbridge.core.exceptions import ConfigurationError

File = Annotated[
    Path | None,
    typer.Option(
        "--file", envvar="AIRBRIDGE_POLICY_FILE", help="The policy.", show_default="the local platform's"
    ),
]
Worker = Annotated[
    str | None, typer.Option(help="The worker that runs it; its region and pool are read from the gateway.")
]
Connection = Annotated[str | None, typer.Option("--connection", help="May it read this connection?")]


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(
        help="Check and explain what tasks may access beyond their own resources.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command(epilog="Example: airbridge policy check --file policy.toml --regions-file regions.toml")(
        check
    )
    group.command(
        cls=connection.ConnectedCommand,
        epilog="Examples: airbridge policy explain --worker eu-west-1-default-1 --dag etl --connection warehouse;  "
        "airbridge policy explain --file policy.toml --region eu-west-1 --dag etl --trigger cleanup",
    )(explain)
    group.command(cls=connection.ConnectedCommand, epilog="Example: airbridge policy show --json")(show)
    group.command(
        cls=connection.ConnectedCommand, epilog="Example: airbridge policy propose --file policy.toml"
    )(propose)
    return group


def check(
    file: File = None,
    regions_file: Annotated[
        Path | None,
        typer.Option(help="A region catalogue: rules that name unknown regions or pools are errors."),
    ] = None,
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Validate a policy file. Exit status 2 means that a gateway would reject it."""
    from airbridge.control_plane.policy import rules
    from airbridge.core.catalogue import Catalogue

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
    context: typer.Context,
    dag: Annotated[str, typer.Option(help="The DAG of the task.")],
    worker: Worker = None,
    region: Annotated[str | None, typer.Option(help="Instead of --worker: the region.")] = None,
    pool: Annotated[str, typer.Option(help="With --region: the pool.")] = "default",
    bundle: Annotated[str, typer.Option(help="The bundle that defines the DAG.")] = "",
    queue: Annotated[str | None, typer.Option(help="May it be run from this queue?")] = None,
    connection_id: Connection = None,
    variable: Annotated[str | None, typer.Option(help="May it read this variable?")] = None,
    write_variable: Annotated[str | None, typer.Option(help="May it write this variable?")] = None,
    xcoms_of: Annotated[str | None, typer.Option(help="May it read the XComs of this DAG?")] = None,
    runs_of: Annotated[str | None, typer.Option(help="May it read the runs of this DAG?")] = None,
    trigger: Annotated[str | None, typer.Option(help="May it trigger this DAG?")] = None,
    asset: Annotated[str | None, typer.Option(help="May it read this asset (name or URI)?")] = None,
    change_asset: Annotated[str | None, typer.Option(help="May it change this asset?")] = None,
    file: File = None,
    json: Json = False,
) -> None:
    """Explain whether a task may do one thing: the rule that allows it, or would. Exit status 5: denied."""
    from airbridge.control_plane.policy import rules
    from airbridge.control_plane.policy.decisions import Access, TaskFacts

    action, name = _one_access(
        {
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
    )
    if worker is not None:
        region, pool = _location_of(context, worker)
    if region is None:
        raise ConfigurationError("--worker or --region must be given: rules are per region and pool")
    policy = rules.RulePolicy.read(_file(file, connection.options(context).directory))
    access = Access(action, dag_id=name) if rules.KEYS[action].of_dag else Access(action, name)
    # The rules read the DAG, bundle, region and pool alone.
    task = TaskFacts("", "", dag, "", "", -1, region, pool, worker or "", queue or "", bundle)
    ruling = policy.judge(task, access)
    _show(dag, (region, pool), ruling, rules.considered(policy, task, access), json)
    raise typer.Exit(Exit.OK if ruling.allowed else Exit.REFUSED)


def show(
    context: typer.Context,
    json: Json = False,
) -> None:
    """Show the policy that the gateway enforces now."""
    with connection.client(context) as client:
        found = client.get("policy")
    if json:
        output.emit_json(found)
        return
    if found["file"] is None:
        output.emit_text(
            "[airbridge] policy_file is not set: tasks may access nothing beyond their own resources"
        )
        return
    output.emit_text(f"{found['file']}, sha256 {found['digest']}")
    for rule in found["rules"]:
        output.emit_text(f"  {rule['name']}: {rule['comment']}".rstrip(": "))


def propose(
    context: typer.Context,
    file: File = None,
    json: Json = False,
) -> None:
    """Propose a policy, where two operators must approve it. It is in force, on all gateways, once another one approves.

    Exit status 6: it waits for the approval.
    """
    path = _file(file, connection.options(context).directory)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--file {path}: {error}; it must be a readable policy") from error
    with connection.client(context) as client:
        done = client.put("policy", {"text": text})
    if json:
        output.emit_json(done)
    else:
        output.emit_text(f"{path}: in force, sha256 {done['digest']}")


def _one_access(requested: dict[str, str | None]) -> tuple[str, str]:
    """Return the one action with a name. Raises `ConfigurationError` for none or several."""
    chosen = [(action, name) for action, name in requested.items() if name is not None]
    if len(chosen) != 1:
        raise ConfigurationError("give exactly one of --connection, --variable, --queue, ... (see --help)")
    return chosen[0]


def _file(file: Path | None, directory: Path) -> Path:
    return file if file is not None else StateDir(directory).policy_file


def _location_of(context: typer.Context, name: str) -> tuple[str, str]:
    with connection.client(context) as client:
        workers: list[dict[str, Any]] = client.get("workers")["workers"]
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
