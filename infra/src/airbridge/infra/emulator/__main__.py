"""`python -m airbridge.infra.emulator`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Start the emulator on loopback."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.emulator",
        description="AWS on this machine: moto, with the gaps closed that Terraform meets.",
        epilog="Example: python -m airbridge.infra.emulator --port 5600",
    )
    parser.add_argument("--port", type=int, default=5600)
    parser.add_argument("--record", type=Path, help="list every action that is called in this file")
    options = parser.parse_args()
    # moto writes queue URLs with the port that it reads here, when it is imported.
    os.environ["MOTO_PORT"] = str(options.port)
    from airbridge.infra.emulator.server import serve

    def stop(_number: int, _frame: Any) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    serve("127.0.0.1", options.port, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
