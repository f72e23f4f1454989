"""``airbridge up``, ``down`` and ``demo``: run the whole platform on this machine."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from airbridge.control_plane.cli import arguments, output
from airbridge.control_plane.cli.arguments import CacheDirectory, Directory, Json
from airbridge.control_plane.cli.exit_codes import Exit
from airbridge.control_plane.cli.progress import ComponentDisplay
from airbridge.control_plane.dashboard.addresses import PREFIX
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import DEFAULT_REGIONS, Options
from airbridge.control_plane.local.services.aws import EmulatedRegion, parse_regions
from airbridge.control_plane.local.state import PlatformState

_REGION_HELP = (
    "A region, as NAME or NAME:POOL,POOL, or a place without AWS, as NAME@REGION; may be given several times. The first one is the "
    "home region."
)


DagFolder = Annotated[
    Path | None, typer.Option(help="Folder of DAG files.", show_default="DIR/dags", resolve_path=True)
]
Port = Annotated[int | None, typer.Option(help="Port of the UI.", show_default="the last one, or a free one")]
TeamsFile = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of [[team]] entries: bundles whose tasks share the pools.", resolve_path=True
    ),
]
ResidencyFile = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of [[region]] entries: what regions and pools keep (XComs, secrets, strict).",
        resolve_path=True,
    ),
]
FromTerraform = Annotated[
    bool,
    typer.Option(
        "--from-terraform",
        help="Run on the queues and buckets that `make infra-local` created, each process with its IAM role.",
    ),
]
TerraformDirectory = Annotated[
    Path, typer.Option(help="Directory of the outputs of `make infra-local`.", resolve_path=True)
]
DEFAULT_TERRAFORM = Path("infra/.local")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: airbridge up --region us-east-1 --region eu-west-1:default,gpu")(up)
    app.command(epilog="Example: airbridge down --dir .airbridge")(down)
    app.command(epilog="Example: airbridge demo")(demo)


def up(  # noqa: PLR0917 - typer fills them by name
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    regions: Annotated[list[str], typer.Option("--region", help=_REGION_HELP)] = list(DEFAULT_REGIONS),  # noqa: B006 - typer copies it
    workers_per_region: Annotated[int, typer.Option(min=0, help="Workers of each pool of each region.")] = 1,
    schedulers: Annotated[int, typer.Option(min=1, help="Scheduler processes.")] = 1,
    slots: Annotated[int, typer.Option(min=1, help="Task slots of each worker.")] = 8,
    dags: DagFolder = None,
    port: Port = None,
    airflow: Annotated[list[str], typer.Option(help="An Airflow setting, as section.option=value.")] = [],  # noqa: B006 - as above
    worker_env: Annotated[list[str], typer.Option(help="A variable for the workers, as NAME=VALUE.")] = [],  # noqa: B006 - as above
    teams: TeamsFile = None,
    residency: ResidencyFile = None,
    from_terraform: FromTerraform = False,
    terraform_dir: TerraformDirectory = DEFAULT_TERRAFORM,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Return once the platform is ready; stop it with 'airbridge down'."),
    ] = False,
    cache_dir: CacheDirectory = None,
    json: Json = False,
) -> None:
    """Start the platform on this machine and keep it running until Ctrl-C or `airbridge down`."""
    terraform = terraform_dir if from_terraform else None
    if terraform is not None and regions != list(DEFAULT_REGIONS):
        raise typer.BadParameter(
            "cannot be combined with --from-terraform, which defines the regions",
            param_hint="--region",
        )
    options = Options(
        directory=directory,
        regions=parse_regions(regions) if terraform is None else _applied_regions(terraform),
        terraform=terraform,
        workers_per_region=workers_per_region,
        schedulers=schedulers,
        slots=slots,
        dags=dags,
        port=port,
        teams=teams,
        residency=residency,
        airflow=arguments.pairs(airflow, "--airflow"),
        worker_env=arguments.pairs(worker_env, "--worker-env"),
    )
    cache = arguments.cache_directory(cache_dir)
    if detach:
        _up_detached(options, cache, json)
    else:
        _up_here(options, cache, json)


def down(directory: Directory = arguments.DEFAULT_DIRECTORY, json: Json = False) -> None:
    """Stop the platform of a state directory and wait until every process has ended."""
    from airbridge.control_plane.local.shutdown import shut_down

    pid = shut_down(StateDir(directory))
    if json:
        output.emit_json({"stopped": str(directory), "pid": pid})
    else:
        output.emit_text(f"stopped {directory} (process {pid})")


def demo(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", help="State directory, kept afterwards.", show_default="a temporary one, deleted"
        ),
    ] = None,
    from_terraform: FromTerraform = False,
    terraform_dir: TerraformDirectory = DEFAULT_TERRAFORM,
    cache_dir: CacheDirectory = None,
    json: Json = False,
) -> None:
    """Start the platform, run a DAG whose tasks are placed near their data in two regions, stop the platform."""
    from airbridge.control_plane.cli import demo_view
    from airbridge.control_plane.local import demo as local_demo

    with demo_view.DemoView(output.messages()) as view:
        report = local_demo.run(
            directory,
            arguments.cache_directory(cache_dir),
            arguments.environ(),
            view,
            terraform=terraform_dir if from_terraform else None,
        )
    if json:
        output.emit_json(report.model_dump(mode="json"))
    else:
        demo_view.print_report(output.results(), report)
    raise typer.Exit(Exit.OK if report.ok else Exit.FAILED)


def _applied_regions(directory: Path) -> tuple[EmulatedRegion, ...]:
    from airbridge.control_plane.local.services import terraform
    from airbridge.control_plane.local.services.credentials import ADMINISTRATOR

    deployed = terraform.read(directory)
    terraform.check_applied(deployed, directory, ADMINISTRATOR)
    return deployed.regions


def _up_here(options: Options, cache: Path, json: bool) -> None:
    import time

    from airbridge.control_plane.local import environment, logfile, state
    from airbridge.control_plane.local.process.forking import Forking

    directory = StateDir(options.directory)
    directory.make()
    ending = threading.Event()
    with (
        state.locked(directory),
        Forking(environment.base(arguments.environ()), directory.log("fork-server")) as spawn,
        ComponentDisplay(output.messages()) as display,
    ):
        # Imported while the fork server loads.
        from airbridge.control_plane.local.platform import Platform, Watcher

        logfile.configure(directory.log("supervisor"))
        _end_on_signals(ending)

        def ready(now: PlatformState) -> None:
            spawn.close()
            _announce(display, now, json)

        watcher = Watcher(note=display.note, changed=display.changed, ready=ready)
        platform = Platform(
            options, environ=arguments.environ(), cache=cache, spawn=spawn, clock=time, watcher=watcher
        )
        platform.run(wanted=lambda: not ending.is_set())


def _up_detached(options: Options, cache: Path, json: bool) -> None:
    from airbridge.control_plane.local import state
    from airbridge.control_plane.local.exceptions import AlreadyRunning
    from airbridge.control_plane.local.launch import launch
    from airbridge.control_plane.local.platform import BUILDING_TEMPLATE, has_template

    directory = StateDir(options.directory)
    holder = state.lock_holder(directory)
    if holder is not None:
        raise AlreadyRunning(options.directory, holder)
    with ComponentDisplay(output.messages()) as display:
        if not has_template(cache):
            display.note(BUILDING_TEMPLATE)
        launched = launch(options, cache, arguments.environ(), dies_with_parent=False)
        now = launched.await_ready(display.changed)
        _announce(display, now, json)


def _end_on_signals(ending: threading.Event) -> None:
    """Stop the platform in order at the first Ctrl-C or SIGTERM; at the second, end this process at once."""

    def handle(number: int, _frame: object) -> None:
        if ending.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        ending.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)


def _announce(display: ComponentDisplay, now: PlatformState, json: bool) -> None:
    display.settle()
    if json:
        output.emit_json(now.model_dump(mode="json"))
        return
    display.note(f"ready in {now.seconds_to_ready} s; DAG files go to {now.dags}")
    display.note(f"the dashboard is at {now.ui_url}{PREFIX}/, Airflow's UI at:")
    output.emit_text(now.ui_url)
