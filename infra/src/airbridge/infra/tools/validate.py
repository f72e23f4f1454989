"""`make infra-validate`: `terraform validate` on every stack of every synthesised environment.

    python -m airbridge.infra.tools.validate cdktf.out/dev cdktf.out/prod

Only the provider's schema is read: the state's bucket is not accessed (`init -backend=false`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from airbridge.infra.exceptions import CommandFailedError, InfraError


def validate(stack: Path, scratch: Path) -> list[str]:
    """Return Terraform's errors in a stack, each with its place."""
    directory = scratch / stack.parents[1].name / stack.name
    directory.mkdir(parents=True)
    shutil.copy(stack / "cdk.tf.json", directory)
    shared = scratch / "terraform"
    command = ["terraform", f"-chdir={directory}"]
    initialised = _run([*command, "init", "-backend=false", "-input=false", "-no-color"], shared)
    if initialised.returncode:
        raise CommandFailedError(f"{stack}: terraform init: {initialised.stderr.strip()}")
    found = _run([*command, "validate", "-json", "-no-color"], shared)
    try:
        report = json.loads(found.stdout)
    except ValueError as error:
        raise CommandFailedError(f"{stack}: terraform validate: {found.stderr or found.stdout}") from error
    return [
        f"{one['severity']}: {one.get('address', '')} {one['summary']}: {one.get('detail', '')}"
        for one in report["diagnostics"]
    ]


def _run(command: Sequence[str], shared: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TF_DATA_DIR": str(shared), "CHECKPOINT_DISABLE": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)  # noqa: S603  # our own command


def stacks(environments: Sequence[Path]) -> Iterator[Path]:
    """Every stack; an environment without any is an error."""
    for environment in environments:
        found = sorted(file.parent for file in environment.glob("stacks/*/cdk.tf.json"))
        if not found:
            raise InfraError(f"{environment}: there are no synthesised stacks; run make synth first")
        yield from found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is wrong; 0 if nothing is."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.tools.validate",
        description="Have Terraform validate synthesised stacks.",
    )
    parser.add_argument("environments", nargs="+", type=Path, help="directories of synthesised stacks")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            wrong = {stack: validate(stack, Path(scratch)) for stack in stacks(options.environments)}
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for stack, lines in wrong.items():
        for line in lines:
            sys.stdout.write(f"{stack}: {line}\n")
    sys.stdout.write(f"{sum(not lines for lines in wrong.values())} of {len(wrong)} stacks are valid\n")
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
