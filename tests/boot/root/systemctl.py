#!/usr/bin/env python3
"""Unit runner of an instance's root: daemon-reload, enable, start and stop of service units, with the directives that the user data uses.

A unit it does not understand fails to start: no directive is passed over in silence.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS, STATE = Path("/etc/systemd/system"), Path("/run/units")
KNOWN = {
    "Description", "After", "Requires", "StartLimitIntervalSec", "Restart", "RestartSec", "TimeoutStartSec", "TimeoutStopSec",
    "ExecStartPre", "ExecStart", "ExecStop", "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve", "WantedBy",
}  # fmt: skip


def read(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    text = (UNITS / f"{unit}.service").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith(("#", "[")) or not line.strip():
            continue
        name, _, value = line.partition("=")
        if name not in KNOWN:
            sys.exit(f"systemctl: {unit}: unknown directive {name}")
        found.setdefault(name, []).append(value.strip())
    return found


def write(unit: str, **state: object) -> None:
    STATE.mkdir(parents=True, exist_ok=True)
    new = STATE / f"{unit}.new"
    new.write_text(json.dumps(state))
    new.rename(STATE / f"{unit}.json")


def state(unit: str) -> dict[str, object]:
    try:
        return dict(json.loads((STATE / f"{unit}.json").read_text()))
    except FileNotFoundError:
        return {}


def supervise(unit: str) -> None:
    """Run a unit until it is stopped."""
    wanted = read(unit)
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if child is None:
            return
        for command in wanted.get("ExecStop", ()):
            subprocess.run(shlex.split(command), check=False)
        if not wanted.get("ExecStop"):
            child.terminate()

    signal.signal(signal.SIGTERM, stop)
    for name in wanted.get("RuntimeDirectory", ()):
        folder = Path("/run") / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(int(wanted.get("RuntimeDirectoryMode", ["0755"])[0], 8))
    log = (STATE / f"{unit}.log").open("ab")
    pause = float(wanted.get("RestartSec", ["0.1"])[0])
    restarts = wanted.get("Restart", ["no"])[0]
    while not stopping:
        write(unit, pid=os.getpid(), active="activating")
        ready = all(
            not subprocess.run(shlex.split(each), stdout=log, stderr=log, check=False).returncode
            for each in wanted.get("ExecStartPre", ())
        )
        code = 1
        if ready and not stopping:
            child = subprocess.Popen(shlex.split(wanted["ExecStart"][0]), stdout=log, stderr=log)
            write(unit, pid=os.getpid(), active="active")
            code = child.wait()
            child = None
        if stopping or restarts == "no" or (restarts == "on-failure" and code == 0):
            break
        write(unit, pid=os.getpid(), active="failed" if not ready else "activating")
        time.sleep(pause)
    write(unit, active="inactive")


def start(unit: str) -> int:
    if state(unit).get("active") in {None, "inactive"}:
        write(unit, active="activating")
        subprocess.Popen(
            [sys.executable, __file__, "supervise", unit],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    seconds = float(read(unit).get("TimeoutStartSec", ["90"])[0])
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = state(unit).get("active")
        if now == "active":
            return 0
        if now == "failed":
            return 1
        time.sleep(0.2)
    return 1


def stop(unit: str) -> int:
    pid = state(unit).get("pid")
    if isinstance(pid, int):
        os.kill(pid, signal.SIGTERM)
    while state(unit).get("active") not in {None, "inactive"}:
        time.sleep(0.2)
    return 0


def main() -> int:
    action, *units = sys.argv[1:]
    if action in {"daemon-reload", "enable"}:
        for unit in units:
            read(unit)
        return 0
    if action == "supervise":
        supervise(units[0])
        return 0
    each = {"start": start, "stop": stop}[action]
    return max(each(unit) for unit in units)


sys.exit(main())
