"""The emulator on loopback: moto with IAM as AWS decides it, session policies included.

It is part of the infrastructure's package, which this environment does not install; it needs moto alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.moto import free_port

START_SECONDS = 60.0
SOURCE = Path(__file__).resolve().parents[2] / "infra/src"


@contextmanager
def serve(directory: Path) -> Iterator[str]:
    """Run an emulator until the block ends; yield its URL. Its log is in `directory`."""
    port = free_port()
    command = [sys.executable, "-m", "airbridge.infra.emulator", "--port", str(port)]
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    with (directory / "emulator.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{url}/moto-api/", timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"the emulator at {url} did not start; see its log")
