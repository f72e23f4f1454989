#!/usr/bin/env python3
"""`docker` of an instance's root, answered by podman outside of it.

Paths of volumes and files are the root's. Containers stand in the bridge network that the instance's Docker would have. The
log driver `awslogs` writes a file instead.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SETTINGS = json.loads(Path("/run/docker-settings.json").read_text())
VALUED = {
    "--name",
    "--tmpfs",
    "--cap-drop",
    "--security-opt",
    "--env-file",
    "--volume",
    "--log-driver",
    "--log-opt",
    "--stop-timeout",
}


def outside(path: str) -> str:
    return f"{SETTINGS['root']}{path}" if path.startswith("/") else path


def translated(words: list[str]) -> list[str]:
    """Return the options of `docker run` for podman, then the image and its command."""
    options: list[str] = []
    while words and words[0].startswith("--"):
        word = words.pop(0)
        if word in {"--rm", "--read-only"}:
            options.append(word)
            continue
        if word not in VALUED:
            sys.exit(f"docker: unknown option {word}")
        value = words.pop(0)
        if word in {"--log-driver", "--log-opt"}:
            continue
        if word == "--volume":
            source, _, rest = value.partition(":")
            value = f"{outside(source)}:{rest}"
        elif word == "--env-file":
            value = outside(value)
        elif word == "--name":
            value = f"{SETTINGS['prefix']}-{value}"
        options += [word, value]
    return ["run", *options, *SETTINGS["options"], *words]


def main() -> None:
    action, *words = sys.argv[1:]
    if action == "login":
        password = sys.stdin.read().strip()
        sys.exit(0 if password else "docker: no password was given")
    if action == "run":
        command = translated(words)
    elif action == "pull":
        command = ["pull", "--quiet", *words]
    elif action == "stop":
        command = ["stop", *words[:-1], f"{SETTINGS['prefix']}-{words[-1]}"]
    else:
        sys.exit(f"docker: unknown command {action}")
    environ = {**os.environ, **SETTINGS["environ"]}
    nsenter = [
        "nsenter",
        f"--mount=/proc/{SETTINGS['pid']}/ns/mnt",
        f"--net=/proc/{SETTINGS['pid']}/ns/net",
        "--",
        "podman",
    ]
    os.execvpe("nsenter", [*nsenter, *command], environ)


main()
