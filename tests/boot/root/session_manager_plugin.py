#!/usr/bin/env python3
"""`session-manager-plugin`: runs a session's command in the container that it was opened in, and passes on what it prints.

AWS's plugin takes a stream from the session's URL. The emulator's token names the container and the command; AIRBRIDGE_BOOT_TASK is the
name that the containers of its task begin with.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys


def main() -> int:
    """Run the command; return its exit status."""
    if len(sys.argv) == 1:
        print("The Session Manager plugin was installed successfully. Use the AWS CLI to start a session.")
        return 0
    given = json.loads(sys.argv[1])
    session = json.loads(base64.b64decode(given["tokenValue"]))
    print(f"\nStarting session with SessionId: {given['sessionId']}", flush=True)
    container = f"{os.environ['AIRBRIDGE_BOOT_TASK']}-{session['container']}"
    done = subprocess.run(["podman", "exec", container, *shlex.split(session["command"])], check=False)
    print(f"\n\nExiting session with sessionId: {given['sessionId']}.\n", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
