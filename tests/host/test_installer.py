"""The installer on this machine, with a Python and a systemd that are stand-ins, and its folders under a root of their own."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

HOST = Path(__file__).resolve().parents[2] / "images/host"
# `-m venv FOLDER` makes programs that do nothing; with `-c` it has the version that is asked for.
PYTHON = """#!/bin/sh
[ "$1" = -m ] || exit 0
mkdir -p "$3/bin"
for program in python airbridge-worker; do
  printf '#!/bin/sh\\n' >"$3/bin/$program"
  chmod u+x "$3/bin/$program"
done
"""
PROGRAMS = {
    "python3.12": PYTHON,
    "systemctl": "#!/bin/sh\n",
    "sleep": "#!/bin/sh\n",
    "userdel": "#!/bin/sh\n",
    "id": "#!/bin/sh\necho 0\n",
}
FOLDERS = ("/opt/", "/etc/", "/var/lib/")
INSTALL = (
    *("install", "--gateway", "https://gateway.test", "--region", "factory-7"),
    *("--join", "aws_iam", "--ca"),
)


@dataclass(frozen=True)
class Machine:
    """A machine's folders under a root of its own."""

    root: Path

    def run(self, *words: str, umask: int = 0o022) -> str:
        """Run the installer; return its output."""
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", str(self.root / "package/install.sh"), *words],
            env={**os.environ, "PATH": path},
            umask=umask,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, umask: int = 0o022) -> None:
        self.run(*INSTALL, str(self.root / "package/ca.crt"), umask=umask)

    def made(self) -> list[Path]:
        """Return what there is below /etc/airbridge and /opt."""
        return [each for folder in ("etc/airbridge", "opt") for each in (self.root / folder).rglob("*")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with an unpacked package."""
    script = (HOST / "install.sh").read_text()
    for folder in FOLDERS:
        script = script.replace(folder, f"{tmp_path}{folder}")
        (tmp_path / folder.strip("/")).mkdir(parents=True, exist_ok=True)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    package = tmp_path / "package"
    package.mkdir()
    for name, text in {
        "install.sh": script,
        "release": "1.0\n",
        "python-version": "3.12\n",
        "ca.crt": "ca\n",
    }.items():
        (package / name).write_text(text)
    (package / "airbridge-worker.service").write_text((HOST / "airbridge-worker.service").read_text())
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return Machine(tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_worker_can_run_what_was_installed(machine: Machine, umask: int) -> None:
    """Whatever the umask of root's shell, the worker's user reads its settings and executes its programs."""
    machine.install(umask)
    closed = [
        each
        for each in (machine.root / "etc/airbridge", *machine.made())
        if not each.is_symlink()
        and (
            not each.stat().st_mode & stat.S_IROTH
            or (each.stat().st_mode & stat.S_IXUSR and not each.stat().st_mode & stat.S_IXOTH)
        )
    ]
    assert [] == closed


def test_purge_leaves_what_is_not_the_workers(machine: Machine) -> None:
    """On a host of the control plane its keys, beside the worker's settings, are kept; without any, the folder goes."""
    etc = machine.root / "etc/airbridge"
    machine.install()
    (etc / "worker.env").write_text("A=b\n")
    (etc / "secrets").mkdir()
    (etc / "secrets/ca.key").write_text("key\n")
    assert f"{etc} is kept" in machine.run("uninstall", "--purge")
    assert {etc / "secrets", etc / "secrets/ca.key"} == set(machine.made())

    machine.install()
    (etc / "secrets/ca.key").unlink()
    (etc / "secrets").rmdir()
    machine.run("uninstall", "--purge")
    assert not etc.exists()
    assert [] == machine.made()
