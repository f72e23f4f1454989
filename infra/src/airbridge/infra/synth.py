"""`make synth`: synthesises environments into `cdktf.out/<environment>/` and prints what each took.

python -m airbridge.infra.synth [environment ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from airbridge.infra.app import synthesise
from airbridge.infra.exceptions import InfraError
from airbridge.infra.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Synthesise each environment in a process of its own; 0, or 1 with the reasons on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.synth",
        description="Synthesise environments into cdktf.out/<environment>/.",
        epilog="Example: python -m airbridge.infra.synth dev prod",
    )
    parser.add_argument("environments", nargs="*", help="all, if none is named")
    parser.add_argument("--directory", type=Path, default=Path("environments"))
    parser.add_argument("--out", type=Path, default=Path("cdktf.out"))
    parser.add_argument("--here", action="store_true", help="in this process (one environment)")
    options = parser.parse_args(arguments)
    names = options.environments or sorted(file.stem for file in options.directory.glob("*.toml"))
    if options.here:
        return _here(names[0], options.directory, options.out)
    return max([_apart(name, options.directory, options.out) for name in names], default=0)


def _here(name: str, directory: Path, out: Path) -> int:
    try:
        synthesise(Settings(environment=name, environments=directory), out / name)
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _apart(name: str, directory: Path, out: Path) -> int:
    """A process for each: what is timed is what `cdktf synth` would take."""
    started = time.monotonic()
    options = ["--here", "--directory", str(directory), "--out", str(out), name]
    # -O: jsii otherwise checks the types of every argument again, for a fifth of the time.
    command = [sys.executable, "-O", "-m", "airbridge.infra.synth", *options]
    code = subprocess.run(command, check=False).returncode  # noqa: S603  # ourselves
    sys.stdout.write(f"{name}: {time.monotonic() - started:.1f} s\n" if code == 0 else f"{name}: refused\n")
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
