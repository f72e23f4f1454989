"""Promotion and deployment as a pipeline calls them: the command line, git, an operators' API over HTTP, and a stand-in for cdktf.

The stand-in is a program that sends the fleet a stack's new image digest, as `cdktf deploy` sends it to AWS. The fleet's clock runs a
thousand times faster than ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.unit.ci.tree import Tree, git, plant_tree, start_history

from airbridge.ci.exceptions import CiError
from airbridge.ci.release import pins
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.rollout.testing import Behaviour, Fleet
from airbridge.ci.tools import run

CI = [sys.executable, "-c", "from airbridge.ci.cli import main; main()"]
CDKTF = """
import json, re, sys, urllib.request
stack = sys.argv[-1]
text = open("environments/{environment}.toml").read()
digest = re.search(r'^worker = "edge-worker@(sha256:[0-9a-f]+)"', text, re.M)[1]
body = json.dumps({{"stack": stack, "digest": digest}}).encode()
request = urllib.request.Request("{url}/cloud", data=body, method="POST")
urllib.request.urlopen(request).read()
"""


class World:
    """A fleet behind HTTP: the operators' API, Airflow's counts, and the cloud that stacks are deployed to."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, method: str, target: str, body: dict[str, Any]) -> Any:
        """Return the platform's response. Each request advances the fleet's clock."""
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        with self.lock:
            if path == "/cloud":
                self.fleet(body["stack"], pins.WorkerImages(body["digest"]))
                return {}
            if path == "/operator/v1/workers":
                self.fleet.sleep(20)
                return {
                    "workers": [self._row(worker.model_dump(mode="json")) for worker in self.fleet.workers()]
                }
            if path.endswith("/drain"):
                self.fleet.drain(path.split("/")[-2], body["comment"])
                return {}
            if "order_by" in query:
                return {"task_instances": self._runs(query["queue"][0], query)}
            return self._count(query["state"][0], query["queue"][0], query["end_date_gte"][0])

    def _runs(self, queue: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Return runs of one task: of 10 s before, and as long as the new workers' take since then."""
        if "end_date_lte" in query:
            return 10 * [{"dag_id": "d", "task_id": "t", "duration": 10.0}]
        found = self.fleet.slowdown({queue}, self._theirs(datetime.fromisoformat(query["end_date_gte"][0])))
        return min(found.runs, 100) * [{"dag_id": "d", "task_id": "t", "duration": 10.0 * found.ratio}]

    def _count(self, state: str, queue: str, since: str) -> dict[str, int]:
        # Counts are queried by region and by pool@region; the tasks here have the former.
        if "@" in queue:
            return {"total_entries": 0}
        outcomes = self.fleet.outcomes({queue}, self._theirs(datetime.fromisoformat(since)))
        return {
            "total_entries": {"success": outcomes.finished - outcomes.failed, "failed": outcomes.failed}.get(
                state, 0
            )
        }

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Convert the fleet's times to the caller's clock."""
        for key in ("enrolled_at", "last_heartbeat_at"):
            age = self.fleet.clock - datetime.fromisoformat(row[key])
            row[key] = (datetime.now(tz=UTC) - age).isoformat()
        return row

    def _theirs(self, ours: datetime) -> datetime:
        return self.fleet.clock - (datetime.now(tz=UTC) - ours) * 1000

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        world = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                content = json.dumps(world.answer(self.command, self.path, body)).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _serve  # noqa: N815 - the base class's names

            def log_message(self, *_: object) -> None:
                """Do not log requests."""

        return Handler

    @property
    def options(self) -> list[str]:
        """Options that point a command at this platform."""
        return ["--url", self.url, "--airflow-url", self.url]


@contextmanager
def serving(world: World) -> Iterator[World]:
    """The platform, answering until the block ends."""
    thread = threading.Thread(target=world.server.serve_forever, daemon=True)
    thread.start()
    yield world
    world.server.shutdown()
    world.server.server_close()
    thread.join()


@pytest.fixture
def project(tmp_path: Path) -> Tree:
    """Release 1 everywhere, in git; quick waves; the signing key in a file."""
    tree = plant_tree(tmp_path / "project")
    (tree.root / "infra/cdktf.out").rename(tmp_path / "synthesised")
    # Minutes of the real clock, which the rollout measures by; the fleet's runs a thousand times faster.
    tree.edit("ci/rollout.toml", r"^ready_minutes = .*", "ready_minutes = 0.3", count=0)
    tree.edit("ci/rollout.toml", r"^watch_minutes = .*", "watch_minutes = 0.02", count=0)
    tree.edit("ci/inventory.toml", r"^watch_minutes = .*", "watch_minutes = 0.02", count=0)
    tree.write(".gitignore", "dist/\n")
    key = tmp_path / "release.key"
    key.touch(mode=0o600)
    key.write_bytes(tree.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    start_history(tree, "Release 1 everywhere")
    return tree


@pytest.fixture
def platform(project: Tree) -> Iterator[World]:
    """An environment with prod's regions, for a day on release 1."""
    digest = project.release(1).release.images["edge-worker"].digest
    with serving(World(Fleet(dict.fromkeys(pins.load(project.checkout, "prod").regions, digest)))) as world:
        yield world


def ci(tree: Tree, *words: str) -> subprocess.CompletedProcess[str]:
    """airbridge-ci in the project."""
    return subprocess.run(
        [*CI, *words], cwd=tree.root, capture_output=True, text=True, check=False, timeout=120
    )


def promoted(tree: Tree, platform: World) -> None:
    """Release 2 from a build through dev to staging, each proven for a day before it moves on."""
    tree.write("dist/release.json", tree.release(2).text())
    assert ci(tree, "promote", "build", "dev").returncode == 0
    for source, target in (("dev", "staging"), ("staging", "prod")):
        digest = tree.release(2).release.images["edge-worker"].digest
        with serving(World(Fleet({"eu-west-1": digest}))) as proving:
            proving.fleet.sleep(timedelta(days=1).total_seconds())
            done = ci(tree, "promote", source, target, *proving.options)
        assert done.returncode == 0, done.stderr


def deploy(tree: Tree, platform: World) -> subprocess.CompletedProcess[str]:
    """Deploy prod with the stand-in."""
    program = tree.root.parent / "cdktf.py"
    program.write_text(CDKTF.format(environment="prod", url=platform.url), encoding="utf-8")
    options = (*platform.options, "--no-aws-pools", "--cdktf", f"{sys.executable} {program}", "--json")
    return ci(tree, "deploy", "prod", *options)


def test_release_reaches_production(project: Tree, platform: World) -> None:
    """build, dev, staging, prod: the same bytes everywhere, one commit each, then every region of prod in waves."""
    promoted(project, platform)
    texts = {project.read(pins.release_path(name)) for name in ("dev", "staging", "prod")}
    assert len(texts) == 1
    subjects = run("git", "log", "--format=%s", "-3", cwd=project.root).splitlines()
    assert [subject.rpartition(" ")[2] for subject in subjects] == ["prod", "staging", "dev"]
    done = deploy(project, platform)
    assert done.returncode == 0, done.stderr
    new = project.release(2).release.images["edge-worker"].digest
    assert [wave["outcome"] for wave in json.loads(done.stdout)] == ["done", "done", "done"]
    assert all({new} == platform.fleet.running(region) for region in platform.fleet.regions)
    assert run("git", "status", "--porcelain", "infra", cwd=project.root) == ""


def test_a_failing_canary_rolls_itself_back(project: Tree, platform: World) -> None:
    """The first wave's workers fail their tasks: exit code 5, the canary is back on the old image, nothing else was touched."""
    promoted(project, platform)
    old, new = (project.release(number).release.images["edge-worker"].digest for number in (1, 2))
    platform.fleet.behaviours = {("ap-southeast-2", new): Behaviour(share_failed=0.5)}
    done = deploy(project, platform)
    assert done.returncode == 5, done.stderr
    assert "tasks failed since the wave began" in done.stderr
    (wave,) = json.loads(done.stdout)
    assert (wave["outcome"], wave["regions"]) == ("rolled back", ["ap-southeast-2"])
    assert platform.fleet.deployed[-1] == ("edge-ap-southeast-2", old)
    platform.fleet.sleep(120)
    assert all({old} == platform.fleet.running(region) for region in platform.fleet.regions)
    assert run("git", "status", "--porcelain", "infra", cwd=project.root) == ""


def test_rollback_deploys_control_plane_last(project: Tree, platform: World) -> None:
    """On the way back the regions go first: the older control plane would not know the newer workers."""
    for name in ("dev", "staging", "prod"):
        project.pin(name, project.release(2))
    git(project, "add", "-A")
    git(project, "commit", "--quiet", "-m", "Release 2 everywhere")
    done = ci(project, "promote", "staging", "prod", "--rollback")
    assert done.returncode == 0, done.stderr
    done = deploy(project, platform)
    assert done.returncode == 0, done.stderr
    old = project.release(1).release.images["edge-worker"].digest
    assert platform.fleet.deployed[-1] == ("control-plane", old)
    assert len(platform.fleet.deployed) == len(platform.fleet.regions) + 2


def test_wave_never_goes_back_to_unsigned(project: Tree, platform: World) -> None:
    """The release that a failed wave would go back to is verified before the first wave: its digests are applied, too."""
    path = pins.release_path("prod")
    for text, subject in (
        (Manifest(release=project.release(2).release).text(), "A release that nobody signed"),
        (project.release(1).text(), "Release 1 again"),
    ):
        project.write(path, text)
        git(project, "commit", "--quiet", "--all", "-m", subject)
    done = deploy(project, platform)
    assert (done.returncode, platform.fleet.deployed) == (4, []), done.stderr
    assert "the manifest is not signed" in done.stderr


def test_deployment_needs_committed_files(project: Tree, platform: World) -> None:
    """A changed environment file is not applied before it is committed."""
    project.append("infra/environments/prod.toml", "\n# a change\n")
    done = deploy(project, platform)
    assert (done.returncode, platform.fleet.deployed) == (4, [])
    assert "not as it was committed: infra/environments/prod.toml" in done.stderr


def test_skipping_an_environment_is_refused(project: Tree, platform: World) -> None:
    """Promotion past an environment exits with 4 and names the rule."""
    project.write("dist/release.json", project.release(2).text())
    done = ci(project, "promote", "build", "prod", *platform.options)
    assert done.returncode == 4
    assert "no environment is skipped" in done.stderr


def test_unreachable_control_plane_refuses_promotion(project: Tree) -> None:
    """A promotion that cannot query the control plane is refused."""
    project.pin("dev", project.release(2))
    done = ci(project, "promote", "dev", "staging", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "/operator/v1/workers" in done.stderr


def test_failing_program_is_reported() -> None:
    """The error of a tool carries its exit code and last words."""
    with pytest.raises(CiError, match="ended with 3"):
        run(sys.executable, "-c", "import sys; print('so sad', file=sys.stderr); sys.exit(3)")
    with pytest.raises(CiError, match="not installed"):
        run("no-such-program-anywhere")
