"""The Terraform module of a host, applied to a Debian container with systemd and sshd: its scripts, the package and its worker are real."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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

USER_DATA = """
module "worker" {
  source = "%(module)s"

  package = {
    url    = "https://localhost:%(port)s/%(archive)s"
    sha256 = "%(digest)s"
  }
  gateway_url    = "https://127.0.0.1:9"
  ca_certificate = file("%(folder)s/ca.crt")
  region         = "factory-7"
  name           = "press-1"
  join_method    = "bound_key"
}

output "user_data" {
  value = module.worker.cloud_init
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


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Image of a Debian host with sshd and cloud-init."""
    found = subprocess.run(["podman", "image", "exists", IMAGE], check=False)
    if found.returncode:
        archive = tmp_path_factory.mktemp("image") / "debian.tar"
        packages = f"{PACKAGES},openssh-server,sudo,curl,cloud-init"
        command("mmdebstrap", "--variant=apt", f"--include={packages}", "bookworm", archive)
        command("podman", "import", "--quiet", archive, IMAGE)
        archive.unlink()
    return IMAGE


@contextmanager
def booted(image: str, folder: Path, *volumes: str) -> Iterator[Host]:
    """Boot a host whose sshd listens on loopback, with `folder` as /given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd.conf").write_text(f"Port {port}\nListenAddress 127.0.0.1\n")
    name = f"airbridge-terraform-{os.getpid()}"
    volumes = (f"{folder}:/given:ro", f"{folder}/sshd.conf:/etc/ssh/sshd_config.d/test.conf:ro", *volumes)
    mounted = [word for volume in volumes for word in ("--volume", volume)]
    options = ("--systemd=always", "--network=host", "--hostname=host-1", "--add-host=host-1:127.0.0.1")
    logged = "--log-driver=k8s-file"
    command("podman", "run", "--detach", "--name", name, *options, logged, *mounted, image, "/sbin/init")
    try:
        host = Host(name)
        states = {"running", "degraded"}
        wait_for(lambda: host.run("systemctl is-system-running", check=False) in states, "systemd", 120)
        yield host
    finally:
        command("podman", "rm", "--force", "--time", "5", name)


@pytest.fixture
def machine(image: str, tmp_path: Path) -> Iterator[Host]:
    """A Debian host, with a user who may use sudo."""
    command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    with booted(image, tmp_path) as host:
        host.run("useradd -m -s /bin/sh ops && chmod 0755 ~ops")
        host.run("echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops")
        host.run("install -D -m 0600 -o ops /given/key.pub ~ops/.ssh/authorized_keys && chown ops ~ops/.ssh")
        yield host


def certificate(folder: Path) -> None:
    """Make a certificate of localhost: ca.crt and ca.key."""
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    more = (
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        folder / "ca.key",
        "-out",
        folder / "ca.crt",
    )
    command(*words.split(), *more)


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Serve the files of a folder by HTTPS on loopback; yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "ca.key")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def configure(machine: Host, folder: Path) -> Terraform:
    """Write a configuration for the host, and initialise it."""
    certificate(folder)
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


def test_user_data_installs_at_the_first_boot(image: str, tmp_path: Path) -> None:
    """cloud-init finds the user data valid, downloads and verifies the package, and installs the worker, which waits for its binding."""
    certificate(tmp_path)
    first, _ = archives(tmp_path)
    with serving(tmp_path) as port:
        values = {"module": MODULE, "folder": tmp_path, "port": port, "archive": first.name}
        values["digest"] = hashlib.sha256(first.read_bytes()).hexdigest()
        (tmp_path / "main.tf").write_text(USER_DATA % values)
        terraform = Terraform(tmp_path)
        for words in (("init",), ("apply", "-auto-approve")):
            status, output = terraform.run(*words)
            assert 0 == status, output
        seed = tmp_path / "seed"
        seed.mkdir()
        outputs = subprocess.run(["terraform", "output", "-raw", "user_data"], cwd=tmp_path, capture_output=True, check=True)  # fmt: skip
        (seed / "user-data").write_bytes(outputs.stdout)
        (seed / "meta-data").write_text("instance-id: i-1\n")
        volumes = (
            f"{seed}:/var/lib/cloud/seed/nocloud:ro",
            f"{tmp_path}/ca.crt:/etc/ssl/certs/ca-certificates.crt:ro",
        )
        with booted(image, tmp_path, *volumes) as host:
            assert "Valid cloud-config" in host.run(
                "cloud-init schema -c /var/lib/cloud/seed/nocloud/user-data"
            )
            # The container has no locales, which cloud-init counts as an error.
            host.run("cloud-init status --wait", check=False)
            log = host.run("cat /var/log/cloud-init-output.log")
            assert "airbridge worker bind press-1 --region factory-7 --key" in log
            assert "enabled" == host.run("systemctl is-enabled airbridge-worker")
