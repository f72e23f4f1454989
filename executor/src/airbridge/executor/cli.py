"""``airflow airbridge ...``: what the executor adds to Airflow's own command line."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

WORKER_PACKAGE = "airbridge-edge-worker"
WORKER_CLI = "airbridge.edge_worker.cli"


def commands() -> list[Any]:
    """Return the command group for Airflow's parser."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    config = Arg(("--config",), help="The worker's settings (TOML); without it, AIRBRIDGE_WORKER_* variables")
    worker = ActionCommand(
        name="worker",
        help="Run an edge worker on this machine",
        description="The same as 'airbridge-worker run'. Example: airflow airbridge worker --config worker.toml",
        func=run_worker,
        args=(config,),
    )
    return [GroupCommand(name="airbridge", help="AirBridge: tasks on workers far away", subcommands=[worker])]


def run_worker(arguments: argparse.Namespace) -> None:
    """Hand over to the worker's own command line, if it is installed here."""
    try:
        cli = importlib.import_module(WORKER_CLI)  # by name: the arrow points the other way
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("airbridge.edge_worker"):
            raise
        raise SystemExit(
            f"this environment has no edge worker; install it with: pip install {WORKER_PACKAGE}"
        ) from error
    config = [] if arguments.config is None else ["--config", arguments.config]
    raise SystemExit(cli.main(["run", *config]))
