"""The script of the Terraform module of a host, with a package and a systemd that are stand-ins."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "infra/terraform/worker-on-a-host/scripts/worker.sh"
PACKAGE = "1" * 64
ARGUMENTS = "--gateway\nhttps://gateway.test\n--region\nfactory-7\n--join\nbound_key\n--name\n{name}\n--slots\n{slots}\n"
# As the real one does: a worker whose key an operator binds is not started, and its settings stay when it is removed.
INSTALLER = """#!/bin/sh
action=$1
shift
case $action in
  uninstall) rm -f ROOT/active ROOT/opt/airbridge-worker/current; exit 0 ;;
esac
[ ! -e ROOT/broken ] || exit 1
: >ROOT/etc/airbridge/worker.toml
while [ $# -gt 0 ]; do
  case $1 in
    --region) echo "region = \\"$2\\"" >>ROOT/etc/airbridge/worker.toml ;;
    --name) echo "name = \\"$2\\"" >>ROOT/etc/airbridge/worker.toml ;;
    --slots) echo "slots = $2" >>ROOT/etc/airbridge/worker.toml ;;
  esac
  shift 2
done
touch ROOT/opt/airbridge-worker/current
"""
SYSTEMCTL = """#!/bin/sh
case $1 in
  is-active) [ -e ROOT/active ] ;;
  start) touch ROOT/active ;;
esac
"""


@dataclass(frozen=True)
class Host:
    """A host's folders under a root of its own."""

    root: Path

    @property
    def is_running(self) -> bool:
        return (self.root / "active").exists()

    def bind_and_start(self) -> None:
        """What an operator does once the key is bound."""
        (self.root / "active").touch()

    def apply(self, *, slots: int, name: str = "press-1", token: str = "") -> int:
        folder = self.root / "given"
        folder.mkdir(exist_ok=True)
        (folder / "arguments").write_text(ARGUMENTS.format(name=name, slots=slots))
        (folder / "ca.crt").write_text("ca")
        (folder / "join.token").write_text(token)
        words = ["sh", str(self.root / "worker.sh"), "apply", PACKAGE, f"{name}-{slots}", str(folder)]
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(words, env={**os.environ, "PATH": path}, check=False).returncode


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with an unpacked package."""
    package = tmp_path / f"opt/airbridge-worker-packages/{PACKAGE}"
    programs = {
        package / "airbridge-worker-1/install.sh": INSTALLER,
        tmp_path / "bin/systemctl": SYSTEMCTL,
        tmp_path / "bin/id": "#!/bin/sh\necho 0\n",
        tmp_path / "worker.sh": SCRIPT.read_text().replace("/opt/", "ROOT/opt/").replace("/etc/", "ROOT/etc/").replace("/run/", "ROOT/run/"),
    }  # fmt: skip
    for path, text in programs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("ROOT", str(tmp_path)))
        path.chmod(0o755)
    for folder in ("opt/airbridge-worker", "etc/airbridge", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (package / "complete").touch()
    return Host(tmp_path)


def test_bound_worker_waits_for_its_operator(host: Host) -> None:
    """The first application does not start a worker whose key an operator binds."""
    assert 0 == host.apply(slots=2)
    assert not host.is_running


def test_changed_setting_leaves_a_bound_worker_running(host: Host) -> None:
    """Its key stays bound to its name: the worker that is installed anew runs again without a token."""
    host.apply(slots=2)
    host.bind_and_start()
    assert 0 == host.apply(slots=3)
    assert host.is_running


def test_repeated_application_starts_the_worker(host: Host) -> None:
    """An application that failed after the worker was stopped is repeated, and the worker runs again."""
    host.apply(slots=2)
    host.bind_and_start()
    (host.root / "broken").touch()
    assert 1 == host.apply(slots=3)
    assert not host.is_running
    (host.root / "broken").unlink()
    assert 0 == host.apply(slots=3)
    assert host.is_running


def test_new_name_waits_for_its_operator(host: Host) -> None:
    """A worker of another name is another worker: its key is not bound yet."""
    host.apply(slots=2)
    host.bind_and_start()
    assert 0 == host.apply(slots=2, name="press-2")
    assert not host.is_running


def test_stopped_worker_stays_stopped(host: Host) -> None:
    """What an operator stopped before a change of its settings is not started by it."""
    host.apply(slots=2)
    assert 0 == host.apply(slots=3)
    assert not host.is_running
