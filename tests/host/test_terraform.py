"""The Terraform module of a host, applied to a Debian container with systemd and sshd: its scripts, the package and its worker are real."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.host.test_install import PACKAGES, ROOT, TOOLS, Host, command, package
from tests.support.platform import wait_for

MODULE = ROOT / "infra/terraform/worker-on-a-host"
IMAGE = "localhost/airbridge-test-systemd-ssh:1"
NEEDED = (*TOOLS, "terraform", "openssl", "ssh-keygen")
TOKEN = "a-token-that-no-state-holds"

CONFIGURATION = """
variable "package" {
  type = object({ file = string, sha256 = string })
}

variable "slots" {
  type    = number
  default = 2
}

variable "purge" {
  type    = bool
  default = false
}

variable "join_token" {
  type      = string
  default   = null
  ephemeral = true
}

module "worker" {
  source = "%(module)s"

  ssh = {
    host             = "127.0.0.1"
    port             = %(port)s
    user             = "ops"
    timeout          = "30s"
    host_key         = "%(host_key)s"
    private_key_file = "%(folder)s/key"
  }
  package          = var.package
  purge_on_destroy = var.purge

  gateway_url    = "https://127.0.0.1:9"
  ca_certificate = file("%(folder)s/ca.crt")
  region         = "factory-7"
  name           = "press-1"
  slots          = var.slots
  join_token     = var.join_token
  settings       = { slot_memory_mib = 512 }
}
"""

pytestmark = [
    pytest.mark.slow("make proof-host"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"needs {', '.join(NEEDED)}"),
]


@dataclass(frozen=True)
class Terraform:
    """A configuration that uses the module."""

    folder: Path

    def run(self, *words: str, token: bool = False) -> tuple[int, str]:
        """Run a command of Terraform; return its exit status and output."""
        environment = {
            **os.environ,
            "TF_IN_AUTOMATION": "1",
            **({"TF_VAR_join_token": TOKEN} if token else {}),
        }
        done = subprocess.run(
            ["terraform", *words, "-no-color"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        # Its box drawing breaks long messages.
        return done.returncode, " ".join(done.stdout.replace("│", " ").split())

    def apply(
        self, archive: Path, *more: str, action: str = "apply", digest: str = "", token: bool = False
    ) -> tuple[int, str]:
        """Apply or destroy with an archive, under its own digest unless another is given."""
        found = digest or hashlib.sha256(archive.read_bytes()).hexdigest()
        given = f'package={{ file = "{archive}", sha256 = "{found}" }}'
        options = ["-detailed-exitcode"] if action == "plan" else ["-auto-approve"]
        return self.run(action, *options, "-var", given, *more, token=token)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Host]:
    """A Debian host whose sshd listens on loopback, with a user who may use sudo."""
    found = subprocess.run(["podman", "image", "exists", IMAGE], check=False)
    if found.returncode:
        archive = tmp_path / "debian.tar"
        command(
            "mmdebstrap", "--variant=apt", f"--include={PACKAGES},openssh-server,sudo", "bookworm", archive
        )
        command("podman", "import", "--quiet", archive, IMAGE)
        archive.unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sshd.conf").write_text(f"Port {port}\nListenAddress 127.0.0.1\n")
    command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    name = f"airbridge-terraform-{os.getpid()}"
    volumes = (f"{tmp_path}:/given:ro", f"{tmp_path}/sshd.conf:/etc/ssh/sshd_config.d/test.conf:ro")
    options = ("--systemd=always", "--network=host", "--hostname=host-1", "--add-host=host-1:127.0.0.1")
    mounted = [word for volume in volumes for word in ("--volume", volume)]
    command(
        "podman",
        "run",
        "--detach",
        "--name",
        name,
        *options,
        "--log-driver=k8s-file",
        *mounted,
        IMAGE,
        "/sbin/init",
    )
    try:
        host = Host(name)
        states = {"running", "degraded"}
        wait_for(lambda: host.run("systemctl is-system-running", check=False) in states, "systemd")
        host.run(
            "useradd -m -s /bin/sh ops && chmod 0755 ~ops && echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops"
        )
        host.run("install -D -m 0600 -o ops /given/key.pub ~ops/.ssh/authorized_keys && chown ops ~ops/.ssh")
        yield host
    finally:
        command("podman", "rm", "--force", "--time", "5", name)


def configure(machine: Host, folder: Path) -> Terraform:
    """Write a configuration for the host, and initialise it."""
    words = "openssl req -x509 -newkey ed25519 -nodes -days 2 -subj /CN=test -keyout /dev/null -out"
    command(*words.split(), folder / "ca.crt")
    values = {
        "module": MODULE,
        "folder": folder,
        "port": (folder / "sshd.conf").read_text().split()[1],
        "host_key": machine.run("cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ecdsa_key.pub"),
    }
    (folder / "terraform").mkdir()
    (folder / "terraform/main.tf").write_text(CONFIGURATION % values)
    found = Terraform(folder / "terraform")
    assert 0 == found.run("init")[0]
    return found


def archives(folder: Path) -> tuple[Path, Path]:
    """Return the archive of the commit that is checked out, and that of a later release."""
    _, later = package(folder)
    (first,) = folder.glob("*.tar.gz")
    target = folder / "later.tgz"
    (folder / "airbridge-worker-later").symlink_to(later)
    command("tar", "czhf", target, "-C", folder, "airbridge-worker-later")
    return first, target


def test_module_installs_upgrades_and_removes(machine: Host, tmp_path: Path) -> None:
    """One apply installs the worker and the next plan is empty; another digest upgrades it, other settings install it anew with the
    same state and the token that the host has; a step that fails is named, and the next apply completes; destruction removes it."""
    terraform = configure(machine, tmp_path)
    first, later = archives(tmp_path)

    status, output = terraform.apply(first, token=True)
    assert 1 == status
    assert "preparing: other users can enter /home/ops" in output
    machine.run("chmod 0750 ~ops")
    status, output = terraform.apply(first, token=True)
    assert 0 == status, output
    assert "active" == machine.run("systemctl is-active airbridge-worker")
    status, output = terraform.apply(first, action="plan")
    assert 0 == status, output
    assert TOKEN not in (terraform.folder / "terraform.tfstate").read_text()
    assert TOKEN == machine.run("cat /etc/airbridge/join.token")
    assert "No such file" in machine.run("ls ~ops/.airbridge-terraform/join.token", check=False)

    status, output = terraform.apply(later, action="plan", digest="0" * 64)
    assert 1 == status
    assert "has not the SHA-256" in output

    machine.run("touch /var/lib/airbridge-worker/kept && mv /usr/bin/tar /usr/bin/tar.away")
    status, output = terraform.apply(later)
    assert 1 == status
    assert "airbridge: unpacking the package failed" in output
    assert "active" == machine.run("systemctl is-active airbridge-worker")
    machine.run("mv /usr/bin/tar.away /usr/bin/tar")
    status, output = terraform.apply(later)
    assert 0 == status, output
    assert "the worker takes no new ones" in output
    assert machine.run("readlink /opt/airbridge-worker/current").endswith("-later")

    status, output = terraform.apply(later, "-var", "slots=3")
    assert 0 == status, output
    assert "installed anew" in output
    assert "slots = 3" in machine.run("cat /etc/airbridge/worker.toml")
    assert TOKEN == machine.run("cat /etc/airbridge/join.token")
    machine.run("test -e /var/lib/airbridge-worker/kept")

    # The package is not needed any more.
    later.unlink()
    digest = "0" * 64
    status, output = terraform.run("apply", "-auto-approve", "-target=module.worker.terraform_data.worker", "-var", "slots=3",
        "-var", f'package={{ file = "{later}", sha256 = "{digest}" }}', "-var", "purge=true")  # fmt: skip
    assert 0 == status, output
    status, output = terraform.run(
        "destroy", "-auto-approve", "-var", f'package={{ file = "{later}", sha256 = "{digest}" }}'
    )
    assert 0 == status, output
    left = (
        "ls -d /opt/airbridge-worker /opt/airbridge-worker-packages /etc/airbridge /var/lib/airbridge-worker"
    )
    assert 4 == machine.run(left, check=False).count("No such file")
