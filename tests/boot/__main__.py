"""`make infra-boot`: apply the stacks to an emulator, boot what they made, run the demo on it, and take it down."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.boot import demo
from tests.boot.images import Build
from tests.boot.platform import deployed


def main() -> int:
    """Boot everything and run the demo; return 0 if its DAG is green."""
    parser = argparse.ArgumentParser(prog="python -m tests.boot", description=__doc__)
    parser.add_argument("dist", type=Path, nargs="?", default=Path("dist"), help="what `make images` left")
    build = Build(parser.parse_args().dist.resolve())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airbridge-boot-")))
        booting = stack.enter_context(deployed(folder, build, demo.note))
        demo.boot(booting)
        green = demo.run(booting)
    print(f"infra-boot: the demo is {'green' if green else 'NOT green'}, on what Terraform made")
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(main())
