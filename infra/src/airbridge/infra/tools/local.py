"""`make infra-local`: the emulator, and the real `cdktf deploy` of every stack on it, in the order of a first deployment.

    python -m airbridge.infra.tools.local up | plan | destroy
    python -m airbridge.infra.tools.local diff                                   what a deploy would change, by stack
    python -m airbridge.infra.tools.local deploy edge-ap-southeast-2 ...         some stacks alone, and the catalogue anew
    python -m airbridge.infra.tools.local destroy edge-ap-southeast-2 ...

Secrets are filled between `foundation` and `control-plane`, as in AWS, with keys that are none: the platform on the emulator has
its own. Leaves in `.local/`: outputs.json (by stack), regions.toml (the region catalogue), env (what a shell needs to talk to
the emulator), emulator.log and emulator.pid. The emulator keeps running until `destroy`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airbridge.infra import catalogue
from airbridge.infra import environment as environments
from airbridge.infra.exceptions import CommandFailedError, EmulatorError, InfraError
from airbridge.infra.tools import order, secrets

START_SECONDS = 60.0


@dataclass(frozen=True)
class Local:
    """One local deployment: where its files are, and the emulator's port."""

    environment: str = "local"
    directory: Path = Path(".local")
    port: int = 5600
    environments: Path = Path("environments")

    @property
    def endpoint_url(self) -> str:
        """The emulator's."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def outputs(self) -> Path:
        """Path of the stacks' outputs."""
        return self.directory / "outputs.json"

    def variables(self) -> dict[str, str]:
        """Environment in which Terraform, cdktf and boto3 reach the emulator; the stacks are unchanged."""
        return {
            "AIRBRIDGE_ENV": self.environment,
            "AIRBRIDGE_ENVIRONMENTS": str(self.environments.absolute()),
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            # An action that the emulator does not know is an error at once, not in ten minutes.
            "AWS_MAX_ATTEMPTS": "2",
            "AWS_EC2_METADATA_DISABLED": "true",
            "CDKTF_SKIP_PROVIDER_LOCK": "true",
            "CDKTF_OUTPUT": str(self.directory / "cdktf.out"),
            "CI": "true",
            "CHECKPOINT_DISABLE": "1",
        }

    def stacks(self) -> list[str]:
        """The environment's stacks in the order in which they are deployed, without bootstrap."""
        environment = environments.load(self.environments / f"{self.environment}.toml")
        return [*order.HOME[1:], *(f"edge-{region.name}" for region in environment.regions)]


Run = Callable[[Sequence[str], Mapping[str, str]], None]


def run(command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run a command; CommandFailedError names it."""
    done = subprocess.run(command, check=False, env={**os.environ, **variables})  # noqa: S603  # no shell, our own commands
    if done.returncode:
        raise CommandFailedError(f"{' '.join(command)}: exit code {done.returncode}")


def quiet(command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run a command whose output is of interest only if it fails; CommandFailedError then has it."""
    done = subprocess.run(  # noqa: S603  # as above
        command, check=False, env={**os.environ, **variables}, capture_output=True, text=True
    )
    if done.returncode:
        raise CommandFailedError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def logged(path: Path) -> Run:
    """Return a `run` whose commands write to a file; CommandFailedError has the end of what the failed one wrote."""

    def to_file(command: Sequence[str], variables: Mapping[str, str]) -> None:
        with path.open("ab") as log:
            began = log.tell()
            done = subprocess.run(  # noqa: S603  # as above
                command, check=False, env={**os.environ, **variables}, stdout=log, stderr=log
            )
        if done.returncode:
            wrote = path.read_bytes()[began:].decode(errors="replace")
            raise CommandFailedError(
                f"{' '.join(command)}: exit code {done.returncode}; {path} has its output, which ends:\n{wrote[-2000:]}"
            )

    return to_file


def up(local: Local, run: Run = run, note: Callable[[str], None] = lambda _: None) -> None:
    """Start the emulator and deploy everything."""
    local.directory.mkdir(exist_ok=True)
    (local.directory / "env").write_text("".join(f"export {k}={v}\n" for k, v in local.variables().items()))
    if start_emulator(local):
        # The resources of an earlier emulator are gone, so the state in that working directory is void.
        shutil.rmtree(local.directory / "cdktf.out", ignore_errors=True)
    for title, command, variables in _deployment(local):
        note(f"{title} ...")
        started = time.monotonic()
        run(command, {**local.variables(), **variables})
        note(f"{title}: {time.monotonic() - started:.0f} s")
    collect(local)


def _deployment(local: Local) -> list[tuple[str, list[str], dict[str, str]]]:
    """Return the steps: title, command and variables.

    The state's bucket is made with the state beside it; then the state is moved into the bucket.
    """
    deploy = [*_CDKTF, "deploy", "--auto-approve"]
    first = ("bootstrap", [*deploy, "bootstrap"], {"AIRBRIDGE_STATE": "local"})
    moved: tuple[str, list[str], dict[str, str]] = (
        "bootstrap, its state moved",
        [*deploy, "--migrate-state", "bootstrap"],
        {},
    )
    base, home, *regions = local.stacks()
    outputs = [str(local.directory / f"outputs-{name}.json") for name in ("base", "home", "regions")]
    return [
        first,
        moved,
        (base, [*deploy, "--outputs-file", outputs[0], base], {}),
        ("secrets", _secrets(local, "fill", "--directory", str(_keys(local))), {}),
        (home, [*deploy, "--outputs-file", outputs[1], home], {}),
        # Regions know nothing of each other: cdktf deploys them at the same time.
        (", ".join(regions), [*deploy, "--outputs-file", outputs[2], *regions], {}),
        ("certificate", _secrets(local, "publish"), {}),
    ]


def _secrets(local: Local, step: str, *options: str) -> list[str]:
    named = ["--environment", local.environment, "--environments", str(local.environments)]
    return [sys.executable, "-m", "airbridge.infra.tools.secrets", step, *named, *options]


def _keys(local: Local) -> Path:
    """Return a directory of files as `airbridge init` makes them, none of which is a key."""
    directory = local.directory / "keys"
    directory.mkdir(exist_ok=True)
    for file in secrets.FILES.values():
        (directory / file).write_text(f"{file} of an emulator\n")
    return directory


def plan(local: Local, run: Run = run) -> None:
    """Plan every stack, and keep each plan as JSON; CommandFailedError if one would change."""
    changed = {stack: changes for stack, changes in diff(local, run).items() if changes}
    if changed:
        raise CommandFailedError(f"a second plan is not empty: {json.dumps(changed, indent=2)}")


def diff(local: Local, run: Run = run) -> dict[str, dict[str, str]]:
    """Return the changes of a deploy: by stack, the address of each resource that would change, and its actions."""
    run([*_CDKTF, "synth"], local.variables())
    return {stack: _changes(local, stack, run) for stack in ("bootstrap", *local.stacks())}


def _changes(local: Local, stack: str, run: Run) -> dict[str, str]:
    directory = local.directory / "cdktf.out" / "stacks" / stack
    terraform = ["terraform", f"-chdir={directory}"]
    quiet = ["-no-color", "-input=false"]
    run([*terraform, "init", *quiet], local.variables())
    run([*terraform, "plan", *quiet, "-out=plan"], local.variables())
    shown = subprocess.run([*terraform, "show", "-json", "plan"], check=True, capture_output=True)  # noqa: S603
    (directory / "plan.json").write_bytes(shown.stdout)
    return {
        change["address"]: "+".join(change["change"]["actions"])
        for change in json.loads(shown.stdout).get("resource_changes", ())
        if change["change"]["actions"] not in (["no-op"], ["read"])
    }


def deploy(local: Local, stacks: Sequence[str], run: Run = run) -> None:
    """Deploy some stacks alone, and write the catalogue anew."""
    _require_known(local, stacks)
    for stack in stacks:
        outputs = str(local.directory / f"outputs-{stack}.json")
        run([*_CDKTF, "deploy", "--auto-approve", "--outputs-file", outputs, stack], local.variables())
    collect(local)


def destroy(local: Local, stacks: Sequence[str] = (), run: Run = run) -> None:
    """Destroy some stacks alone; without any, all, regions first, and end the emulator, which forgets the rest."""
    _require_known(local, stacks)
    base, home, *regions = local.stacks()
    for group in ([stack] for stack in stacks) if stacks else (regions, [home], [base]):
        run([*_CDKTF, "destroy", "--auto-approve", *group], local.variables())
    if stacks:
        collect(local, without=stacks)
    else:
        stop_emulator(local)


def _require_known(local: Local, stacks: Sequence[str]) -> None:
    unknown = sorted(set(stacks) - set(local.stacks()))
    if unknown:
        raise InfraError(f"no stack {', '.join(unknown)}; there are {', '.join(local.stacks())}")


def collect(local: Local, without: Sequence[str] = ()) -> None:
    """One file of outputs, by stack, and the region catalogue made from it."""
    outputs: dict[str, Any] = {}
    for file in sorted(local.directory.glob("outputs-*.json"), key=lambda file: file.stat().st_mtime):
        outputs |= json.loads(file.read_text())
    wanted = set(local.stacks()) - set(without)
    outputs = {stack: values for stack, values in outputs.items() if stack in wanted}
    local.outputs.write_text(json.dumps(outputs, indent=2, sort_keys=True) + "\n")
    (local.directory / "regions.toml").write_text(catalogue.from_outputs(outputs, local.endpoint_url))


def start_emulator(local: Local) -> bool:
    """Start the emulator, unless it runs already; whether it was started. EmulatorError if it does not answer."""
    if _answers(local.endpoint_url):
        return False
    command = [sys.executable, "-m", "airbridge.infra.emulator", "--port", str(local.port)]
    command += ["--record", str(local.directory / "actions.json")]
    with (local.directory / "emulator.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # noqa: S603  # ourselves
    (local.directory / "emulator.pid").write_text(str(process.pid))
    deadline = time.monotonic() + START_SECONDS
    while not _answers(local.endpoint_url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise EmulatorError(f"the emulator did not start; see {local.directory / 'emulator.log'}")
        time.sleep(0.2)
    return True


def stop_emulator(local: Local) -> None:
    """End the emulator that `up` started."""
    file = local.directory / "emulator.pid"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(file.read_text()), signal.SIGTERM)
    file.unlink(missing_ok=True)


def _answers(endpoint_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint_url}/moto-api/", timeout=2) as answer:  # noqa: S310  # loopback
            return bool(answer.status == 200)
    except OSError:
        return False


def _note(line: str) -> None:
    sys.stderr.write(f"infra-local: {line}\n")


_CDKTF = ("npx", "--no-install", "cdktf")


def _do(local: Local, what: str, stacks: Sequence[str]) -> None:
    if what == "up":
        local.directory.mkdir(exist_ok=True)
        log = local.directory / "infra-local.log"
        log.unlink(missing_ok=True)
        _note(f"what Terraform prints is in {log.resolve()}")
        up(local, run=logged(log), note=_note)
        sys.stdout.write(local.outputs.read_text())
    elif what == "diff":
        sys.stdout.write(json.dumps(diff(local, quiet), indent=2) + "\n")
    elif what == "deploy":
        deploy(local, stacks)
    elif what == "destroy":
        destroy(local, stacks)
    else:
        plan(local)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.tools.local", description="The platform on an emulator."
    )
    parser.add_argument("what", choices=("up", "plan", "diff", "deploy", "destroy"))
    parser.add_argument("stacks", nargs="*", help="of deploy and destroy")
    parser.add_argument("--environment", default="local")
    parser.add_argument("--environments", type=Path, default=Path("environments"))
    parser.add_argument("--port", type=int, default=5600)
    options = parser.parse_args(arguments)
    local = Local(environment=options.environment, port=options.port, environments=options.environments)
    try:
        _do(local, options.what, options.stacks)
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
