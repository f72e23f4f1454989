"""Two releases on their way through three environments, on this machine: ``rollout_local.py [pinned|debian] [--keep DIR] [--only N]``.

Real are the images, the registry, git, `airbridge-ci promote` and `deploy`, `cdktf deploy` with Terraform's AWS provider, the control plane
of each environment (a local platform) and its workers (containers of the image, by the digest that the deployed launch template
names). Emulated is AWS, by one emulator an environment; `Instances` does what EC2 would: it starts what the autoscaling groups name.

The first release goes to dev, staging and prod, wave by wave, under work. The second has a fault that shows in one region only: dev
takes it and drains its old workers, staging's canary fails and is rolled back by itself, and the rest of staging and prod never see it.
Then staging and dev, the last one first, are put back on the first release, and dev is deployed once more.
Prints a table of what happened; exit code 0 if everything went as it should.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from containers import ROOT, publish, registry, report, run
from rollout_environments import Place, open_environments, program

from airbridge.ci.cli import exit_codes

CANARY = "ap-southeast-2"
SOAK_SECONDS = 25.0
PARSING = "edge_worker/src/airbridge/edge_worker/_airflow/parsing.py"
FAULT = f'''    if os.environ.get("AWS_DEFAULT_REGION") == "{CANARY}":
        raise RuntimeError("a fault that shows in {CANARY} alone")
'''
# A rehearsal of minutes, with images for this machine: the clone's policy allows what the repository's does not.
REHEARSAL = """bases = ["python:", "debian-"]
soak_minutes = 0
watch_minutes = 0
error_budget = 0.5
canary = false
every_architecture = false
"""
PLAN = f"""
[environment.dev]
ready_minutes = 10
watch_minutes = 0.4
error_budget = 0.2

[environment.staging]
follows = "dev"
soak_minutes = 0.3
waves = [["{CANARY}"]]
ready_minutes = 10
watch_minutes = 0.4
error_budget = 0.2

[environment.prod]
follows = "staging"
soak_minutes = 0.3
waves = [["{CANARY}"], ["eu-west-1"]]
ready_minutes = 10
watch_minutes = 0.4
error_budget = 0.2
"""


def rehearsed(inventory: str) -> str:
    """Return the inventory with the rehearsal's policy for every tier."""
    return re.sub(
        r"^(\[policy\.\w+\]\n)(?:\w+ = .*\n)+",
        lambda found: found[1] + REHEARSAL,
        inventory,
        flags=re.MULTILINE,
    )


@dataclass
class Project:
    """A clone of this repository that has releases and environments of its own."""

    root: Path
    base: str
    address: str
    folder: Path

    @property
    def key(self) -> Path:
        return self.root.parent / "release.key"

    def make_releases(self) -> list[Path]:
        """Both of them; where an earlier run has built and kept them, from there."""
        if (self.root / ".git/refs/tags/built").exists():
            run("git", "-C", self.root, "reset", "--quiet", "--hard", "built")
        else:
            self._prepare()
            self._build(1)
            head = "    path = Path(source.bundle_path, source.dag_rel_path)\n"
            self._change(lambda text: text.replace(head, FAULT + head, 1), "A fault that shows in one region")
            self._build(2)
            run("git", "-C", self.root, "tag", "built")
        return [self._publish(number) for number in (1, 2)]

    def _change(self, edit: Callable[[str], str], message: str) -> None:
        path = self.root / PARSING
        path.write_text(edit(path.read_text()))
        self.commit(message)

    def _prepare(self) -> None:
        run("git", "clone", "--quiet", ROOT, self.root)
        linked = (".tools", "infra/node_modules", "infra/.venv")
        for path in linked:
            (self.root / path).symlink_to(ROOT / path)
        with (self.root / ".git/info/exclude").open("a") as file:
            file.writelines(f"/{path}\n" for path in linked)
        (self.root / "ci/rollout.toml").write_text(PLAN)
        inventory = self.root / "ci/inventory.toml"
        inventory.write_text(rehearsed(inventory.read_text()))
        (self.root / "images/release-keys.toml").write_text(
            run("airbridge-ci", "keygen", self.key, "--owner", "this rollout") + "\n"
        )
        self.commit("An order of environments that is quick, and a key")

    def commit(self, message: str) -> None:
        who = ("-c", "user.name=rollout", "-c", "user.email=rollout@localhost")
        run("git", "-C", self.root, "add", "--all")
        run("git", "-C", self.root, *who, "commit", "--quiet", "--message", message)

    def _out(self, number: int) -> Path:
        return self.root.parent / f"release-{number}"

    def _build(self, number: int) -> None:
        report(f"release {number}: building")
        run("airbridge-ci", "build", "--root", self.root, "--out", self._out(number), "--base", self.base)

    def _publish(self, number: int) -> Path:
        """Sign, publish and pull; the signed manifest is returned."""
        made = self.folder / f"published-{number}"
        (made / "dist").mkdir(parents=True)
        publish(self._out(number), self.address, made, key=self.key, root=self.root)
        return made / "dist" / "release.json"

    def ci(self, *words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        who = {
            f"GIT_{role}_{what}": f"rollout{at}"
            for role in ("AUTHOR", "COMMITTER")
            for what, at in (("NAME", ""), ("EMAIL", "@localhost"))
        }
        report("airbridge-ci " + " ".join(str(word) for word in words[:3]))
        return program("airbridge-ci", *words, cwd=self.root, env=who | (env or {}))


@dataclass
class Outcome:
    """Result of a step beside the expected one."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def note(self, what: str, expected: int, done: subprocess.CompletedProcess[str]) -> None:
        verdict = "as it should be" if done.returncode == expected else f"NOT: {expected} was expected"
        last = (done.stderr.strip().splitlines() or [""])[-1]
        self.rows.append((what, f"exit {done.returncode}, {verdict}", last[:160]))
        report(f"{what}: exit {done.returncode}, {verdict}")

    @property
    def good(self) -> bool:
        return not any("NOT" in row[1] for row in self.rows)


def roll_out(project: Project, places: list[Place], manifest: Path, number: int, outcome: Outcome) -> None:
    """One release through all environments."""
    source: tuple[str | Path, ...] = ("build",)
    options: tuple[str | Path, ...] = ("--manifest", manifest)
    for place in places:
        done = project.ci("promote", *source, place.name, *options)
        outcome.note(f"release {number}: promote to {place.name}", 0, done)
        done = project.ci("deploy", place.name, *place.options, env=place.variables)
        outcome.note(f"release {number}: deploy {place.name}", 0, done)
        source, options = (place.name,), place.options
        time.sleep(SOAK_SECONDS)


def fail_in_canary(project: Project, places: list[Place], manifest: Path, outcome: Outcome) -> None:
    """dev takes the second release; staging's canary rolls it back, and it goes no further."""
    dev = places[0]
    outcome.note(
        "release 2: promote to dev", 0, project.ci("promote", "build", "dev", "--manifest", manifest)
    )
    outcome.note("release 2: deploy dev", 0, project.ci("deploy", "dev", *dev.options, env=dev.variables))
    if len(places) == 1:
        return
    staging = places[1]
    time.sleep(SOAK_SECONDS)
    outcome.note("release 2: promote to staging", 0, project.ci("promote", "dev", "staging", *dev.options))
    done = project.ci("deploy", "staging", *staging.options, env=staging.variables)
    outcome.note("release 2: deploy staging", exit_codes.ROLLED_BACK, done)
    done = project.ci("promote", "staging", "prod", *staging.options)
    outcome.note("release 2: promote to prod", exit_codes.REFUSED, done)
    print(
        json.dumps({"staging runs": {region: staging.wanted(region) for region in staging.regions}}, indent=2)
    )


def go_back(project: Project, places: list[Place], outcome: Outcome) -> None:
    """Both that have the second release go back, the last one first; a deployment can be repeated, and before the first release is none."""
    dev = places[0]
    # prod never had the second release.
    for place in reversed(places[:2]):
        done = project.ci("promote", "build", place.name, "--rollback")
        outcome.note(f"{place.name}: roll back", 0, done)
        done = project.ci("deploy", place.name, *place.options, env=place.variables)
        outcome.note(f"{place.name}: deploy release 1", 0, done)
    outcome.note("dev: deploy again", 0, project.ci("deploy", "dev", *dev.options, env=dev.variables))
    done = project.ci("promote", "build", "dev", "--rollback")
    outcome.note("dev: roll back once more", exit_codes.REFUSED, done)


def main() -> int:
    parser = argparse.ArgumentParser(description="Two releases through three environments, on this machine.")
    parser.add_argument("base", nargs="?", default="pinned", choices=("pinned", "debian"))
    parser.add_argument(
        "--keep", type=Path, help="a folder for the builds, which a later run takes from there"
    )
    parser.add_argument(
        "--only",
        type=int,
        default=3,
        choices=(1, 2, 3),
        help="so many environments, from dev on: each needs a core",
    )
    options = parser.parse_args()
    outcome = Outcome()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airbridge-rollout-")))
        kept = (options.keep or folder / "kept").resolve()
        kept.mkdir(parents=True, exist_ok=True)
        address = stack.enter_context(registry(folder))
        project = Project(kept / "project", options.base, address, folder)
        manifests = project.make_releases()
        references = {}
        for manifest in manifests:
            digest = json.loads(manifest.read_text())["release"]["images"]["edge-worker"]["digest"]
            references[digest] = f"{address}/airbridge/edge-worker@{digest}"
        places = open_environments(project.root, folder, references, stack, options.only)
        roll_out(project, places, manifests[0], 1, outcome)
        fail_in_canary(project, places, manifests[1], outcome)
        go_back(project, places, outcome)
        print(run("git", "-C", project.root, "log", "--format=%h %s", "--", "infra/environments"))
        for row in outcome.rows:
            print("  ".join((f"{row[0]:34}", f"{row[1]:34}", row[2])))
        report("taking everything down")
    print("every release went where it should" if outcome.good else "NOT as it should be")
    return 0 if outcome.good else 1


def _stop(_number: int, _frame: object) -> None:
    sys.exit("stopped; taking everything down")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    shutil.which("npx") or sys.exit("npx is not there: make infra-install")
    sys.exit(main())
