"""Parts of the boot that need no emulator."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.boot import tutorial
from tests.boot.deployment import INFRA, prepare
from tests.boot.images import Build
from tests.boot.network import GATE, reply
from tests.boot.tasks import Definition
from tests.unit.ci.tree import Tree

from airbridge.ci.release.manifest import Manifest

_QUESTION = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"


def question(name: str) -> bytes:
    """Return a question of the DNS for a name's address."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return _QUESTION + labels + b"\0\0\1\0\1"


def test_aws_names_are_the_gate() -> None:
    """Every name of AWS's leads to the emulator, known names to their address, and others do not exist."""
    names = {"gateway.example": "10.0.0.9"}
    assert reply(question("sqs.eu-west-1.amazonaws.com"), names).endswith(bytes(map(int, GATE.split("."))))
    assert reply(question("gateway.example"), names).endswith(bytes([10, 0, 0, 9]))
    assert 3 == reply(question("example.com"), names)[3] & 15


def test_tutorial_deploys_every_stack() -> None:
    """The page's commands make the stacks in the order of a first deployment, and fill the secrets between."""
    commands = [step.command for step in tutorial.steps(tutorial.PAGE.read_text())]
    order = [
        "bootstrap",
        "--migrate-state",
        "foundation",
        "secrets fill",
        "--auto-approve control-plane",
        "--auto-approve edge-",
        "secrets publish",
    ]
    found = [next(i for i, command in enumerate(commands) if word in command) for word in order]
    assert sorted(found) == found


def test_environment_is_synthesised(tmp_path: Path) -> None:
    """What is booted passes the gate of every deployment: its images are those of a signed release, and no others."""
    python = INFRA / ".venv/bin/python"
    if not python.exists():
        pytest.skip("the infrastructure has no environment: make infra-test makes it")
    (tmp_path / "dist").mkdir()
    release = Tree(INFRA.parent, Ed25519PrivateKey.generate()).release().release
    (tmp_path / "dist" / "release.json").write_text(Manifest(release=release).text())
    (tmp_path / "deployment").mkdir()
    made = prepare(tmp_path / "deployment", Build(tmp_path / "dist"), Build(tmp_path / "dist"))
    command = [str(python), "-m", "airbridge.infra.app"]
    for digest, status in ((release.images["edge-worker"].digest, 0), ("sha256:" + 32 * "0a", 1)):
        file = made.infra / "environments" / "dev.toml"
        file.write_text(
            re.sub(r'"edge-worker@sha256:[0-9a-f]+"', f'"edge-worker@{digest}"', file.read_text())
        )
        done = subprocess.run(
            command, cwd=made.infra, env=made.environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
    assert "is in no signed release" in done.stderr


def test_missing_lines_are_named() -> None:
    """A command is held to what the page says that it prints; `...` stands for anything."""
    (step,) = tutorial.steps("```console\n$ make it\nmade 3 of ... things\ndone\n```\n")
    assert [] == step.missing("  \x1b[1mmade 3 of 12\n things\ndone")
    assert ["done"] == step.missing("made 3 of 12 things")


def test_containers_wait_for_each_other() -> None:
    """Containers start after those that they depend on; a circle is refused."""
    one = {"name": "a", "dependsOn": [{"containerName": "b", "condition": "SUCCESS"}]}
    definition = Definition({"family": "f", "containerDefinitions": [one, {"name": "b"}]})
    assert ["b", "a"] == [each["name"] for each in definition.ordered]
    circle = {"name": "b", "dependsOn": [{"containerName": "a", "condition": "START"}]}
    with pytest.raises(RuntimeError, match="wait for each other"):
        _ = Definition({"family": "f", "containerDefinitions": [one, circle]}).ordered


def test_unknown_directive_is_refused(tmp_path: Path) -> None:
    """The unit runner passes over no directive in silence."""
    runner = (Path(__file__).parent / "root" / "systemctl.py").read_text()
    (tmp_path / "it.service").write_text("[Service]\nExecStart=/bin/true\nProtectHome=yes\n")
    program = runner.replace("/etc/systemd/system", str(tmp_path)).replace("/run/units", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program, "enable", "it"], capture_output=True, text=True, check=False
    )
    assert "it: unknown directive ProtectHome" in done.stderr
    assert done.returncode


def test_packages_of_the_user_data_are_found(tmp_path: Path) -> None:
    """`dnf` of an instance's root installs what the user data names, and fails by the name of what the root lacks."""
    source = (INFRA / "src/airbridge/infra/constructs/compute/worker_image.py").read_text()
    named = re.findall(r'"(awscli[a-z ]*)"', source)
    assert "awscli openssl" in named
    for command in ("aws", "openssl"):
        (tmp_path / command).touch(0o755)
        (tmp_path / command).chmod(0o755)
    shim = Path(__file__).parent / "root" / "dnf.sh"
    for packages, status in [*((each, 0) for each in named), ("awscli nowhere", 1)]:
        done = subprocess.run(
            ["/bin/sh", str(shim), "install", "-y", *packages.split()],
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, packages
    assert "dnf: nowhere is not in this root" in done.stderr
