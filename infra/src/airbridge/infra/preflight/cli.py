"""`airbridge-infra`: commands that look at an AWS account."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from airbridge.infra import environment as environments
from airbridge.infra.exceptions import InfraError
from airbridge.infra.preflight import run
from airbridge.infra.preflight.finding import Account


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. 0: nothing is in the way; 1: a check failed or could not be made; 2: the environment file is wrong."""
    options = _parser().parse_args(arguments)
    try:
        environment = environments.load(options.environments / f"{options.environment}.toml")
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stderr.write(f"looking at the account {environment.account} for {environment.name}\n")
    findings = run.look(Account(environment, _client, _resolves, lambda: datetime.now(tz=UTC)))
    text = json.dumps(run.as_data(findings), indent=2) if options.json else run.as_text(findings)
    sys.stdout.write(f"{text}\n")
    return 1 if run.blocked(findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airbridge-infra", description="Look at AWS accounts.")
    commands = parser.add_subparsers(dest="command", required=True)
    preflight = commands.add_parser(
        "preflight",
        help="what would make a deployment fail, before anything is made",
        description="Look at an account before a deployment, and name each failing check with its remedy. Makes and changes nothing.",
        epilog="Example: airbridge-infra preflight dev",
    )
    preflight.add_argument("environment", help="the environment's name")
    preflight.add_argument("--environments", type=Path, default=Path("environments"), help="their directory")
    preflight.add_argument("--json", action="store_true", help="the report as JSON")
    return parser


def _client(service: str, region: str) -> Any:
    retries = {"total_max_attempts": 3, "mode": "standard"}
    return boto3.client(
        service, region_name=region, config=Config(connect_timeout=5, read_timeout=30, retries=retries)
    )


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
