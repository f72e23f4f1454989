"""A worker on a plain Debian host, by the documented commands: a container that boots systemd, beside a whole local platform."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.platform import LocalPlatform, running, wait_for

from airbridge.control_plane.local.services import aws

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("podman", "mmdebstrap")
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv"
IMAGE = "localhost/airbridge-test-systemd:1"
REGION = "eu-west-1"

DAG = """
import os, time
from airflow.sdk import DAG, task

with DAG("on_a_host"):
    @task(queue="eu-west-1", retries=0)
    def works(seconds):
        time.sleep(float(seconds))
        return os.getuid()
    works("{{ dag_run.conf['seconds'] }}")

with DAG("on_a_host_for_long"):
    @task(queue="eu-west-1", retries=0)
    def works_long():
        time.sleep(45)
        return "finished"
    works_long()
"""

pytestmark = [
    pytest.mark.slow("make proof-host"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {' and '.join(TOOLS)}"),
]


def command(*words: str | Path, check: bool = True) -> str:
    """Run a command of the checkout; return its output."""
    environment = {"CONTAINERS_CONF": str(ROOT / "images/containers.conf"), **os.environ}
    done = subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Host:
    """A container that has booted systemd."""

    name: str

    def run(self, script: str, *, check: bool = True) -> str:
        """Run a shell script as root."""
        return command("podman", "exec", self.name, "sh", "-c", f"{script} 2>&1", check=check)

    def worker_pid(self) -> int:
        """Return the process id of the unit's main process."""
        return int(self.run("systemctl show -p MainPID --value airbridge-worker"))


@contextmanager
def host(folder: Path) -> Iterator[Host]:
    """A plain Debian host on this machine's network, with `folder` as /package."""
    if not _has_image():
        archive = folder / "debian.tar"
        command("mmdebstrap", "--variant=apt", f"--include={PACKAGES}", "bookworm", archive)
        command("podman", "import", "--quiet", archive, IMAGE)
        archive.unlink()
    name = f"airbridge-host-{os.getpid()}"
    options = ("--systemd=always", "--network=host", "--hostname=host-1", "--log-driver=k8s-file")
    command(
        "podman",
        "run",
        "--detach",
        "--name",
        name,
        *options,
        "--volume",
        f"{folder}:/package:ro",
        IMAGE,
        "/sbin/init",
    )
    try:
        found = Host(name)
        wait_for(
            lambda: found.run("systemctl is-system-running", check=False) in {"running", "degraded"},
            "systemd",
        )
        yield found
    finally:
        command("podman", "rm", "--force", "--time", "5", name)


def _has_image() -> bool:
    done = subprocess.run(["podman", "image", "exists", IMAGE], check=False)
    return done.returncode == 0


def package(folder: Path) -> tuple[str, str]:
    """Build the package of the commit that is checked out; return the folders of it and of a later release of the same wheels."""
    built = json.loads(
        command(
            Path(sys.executable).with_name("airbridge-ci"),
            *("host-package", "--python", "3.11", "--out", folder, "--json"),
        )
    )
    command("tar", "xzf", built["archive"], "-C", folder)
    name = Path(built["archive"]).name.removesuffix(".tar.gz")
    shutil.copytree(folder / name, folder / "later", copy_function=os.link)
    (folder / "later/release").unlink()
    (folder / "later/release").write_text(f"{built['release']}-later\n")
    return name, "later"


@pytest.fixture(scope="module")
def platform() -> Iterator[LocalPlatform]:
    with running(workers_per_region=0) as started:
        started.add_dag("on_a_host", DAG)
        yield started


def prepare(platform: LocalPlatform, folder: Path) -> None:
    """Put what an operator hands over into the folder: the roots and a join token; and the emulator's credentials."""
    created = command(
        Path(sys.executable).with_name("airbridge"),
        "token",
        "create",
        "--region",
        REGION,
        "--pool",
        "default",
        "--uses",
        "20",
        "--dir",
        platform.directory.root,
        "--json",
    )
    (folder / "join.token").write_text(json.loads(created)["token"])
    shutil.copy(platform.directory.ca_file, folder / "ca.crt")
    variables = {**aws.CREDENTIALS, "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}
    (folder / "worker.env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))


def install_command(platform: LocalPlatform) -> str:
    return (
        f"./install.sh install --gateway {platform.state.gateway_url} --region {REGION} --ca /package/ca.crt "
        "--token /package/join.token --slots 4 --set slot_memory_mib=512"
    )


def test_worker_is_installed_upgraded_and_removed(platform: LocalPlatform, tmp_path: Path) -> None:
    """One command installs a worker that joins and runs tasks as its own user; an upgrade waits for a running task, which ends
    well in its first attempt; the worker keeps its identity; removal leaves nothing."""
    first, later = package(tmp_path)
    prepare(platform, tmp_path)
    with host(tmp_path) as machine:
        machine.run("install -D -m 0600 /package/worker.env /etc/airbridge/worker.env")
        assert "the worker runs" in machine.run(f"cd /package/{first} && {install_command(platform)}")
        doctor = machine.run(f"/package/{first}/install.sh doctor")
        assert "FAIL" not in doctor, doctor
        assert "task sandbox: Landlock" in doctor

        run = platform.run("on_a_host", {"seconds": 1})
        assert "success" == run.state
        assert int(machine.run("id -u airbridge")) == platform.xcom(run, "works")

        long = platform.trigger("on_a_host_for_long")
        platform.wait_task("on_a_host_for_long", long, "works_long", {"running"}, 120)
        before = machine.worker_pid()
        assert "was replaced by" in machine.run(f"cd /package/{later} && ./install.sh upgrade")
        assert before != machine.worker_pid()
        assert "later" in machine.run("readlink /opt/airbridge-worker/current")
        finished = platform.finish("on_a_host_for_long", long)
        task = finished.task("works_long")
        assert ("success", 1) == (task["state"], task["try_number"])
        assert "finished" == platform.xcom(finished, "works_long")

        # Under the same name: the worker enrols anew at each start, and proves with its rejoin key that it is the same host.
        assert "success" == platform.run("on_a_host", {"seconds": 1}).state
        assert "installed already" in machine.run(f"cd /package/{later} && ./install.sh upgrade")

        machine.run(f"cd /package/{later} && ./install.sh uninstall --purge")
        left = "ls -d /opt/airbridge-worker /etc/airbridge /var/lib/airbridge-worker /etc/systemd/system/airbridge-worker.service"
        assert 4 == machine.run(left, check=False).count("No such file")
        assert "no such user" in machine.run("id airbridge", check=False)


def test_upgrade_that_does_not_start_is_undone(platform: LocalPlatform, tmp_path: Path) -> None:
    """A release whose worker does not start is replaced by the one before, which goes on."""
    first, later = package(tmp_path)
    prepare(platform, tmp_path)
    unit = (tmp_path / later / "airbridge-worker.service").read_text()
    (tmp_path / later / "airbridge-worker.service").unlink()
    (tmp_path / later / "airbridge-worker.service").write_text(
        unit.replace(" run --config", " run --no-such-option --config")
    )
    with host(tmp_path) as machine:
        machine.run("install -D -m 0600 /package/worker.env /etc/airbridge/worker.env")
        machine.run(f"cd /package/{first} && {install_command(platform)} --name host-2")
        said = machine.run(f"cd /package/{later} && ./install.sh upgrade", check=False)
        assert "the upgrade was undone" in said
        assert "later" not in machine.run("readlink /opt/airbridge-worker/current")
        time.sleep(1)
        assert "active" == machine.run("systemctl is-active airbridge-worker")
        assert "success" == platform.run("on_a_host", {"seconds": 1}).state


WRONG_CALLS = {
    "--gateway https://g --region r --ca ca.crt": "--token is needed",
    "--gateway https://g --region r --ca ca.crt --join bound_key": "--join bound_key needs --name",
    "--gateway https://g --region r --ca ca.crt --join aws_iam --token t": "takes no --token",
    "--gateway https://g --region r --ca ca.crt --join tpm": "it must be token, bound_key or aws_iam",
}


def test_host_joins_by_its_own_key(platform: LocalPlatform, tmp_path: Path) -> None:
    """Without a token the installer prints the operator's command with this host's key, and the worker joins once that was run;
    with a token that binds the key, it joins at once. Calls that lack something make nothing."""
    first, _ = package(tmp_path)
    prepare(platform, tmp_path)
    airbridge = Path(sys.executable).with_name("airbridge")
    with host(tmp_path) as machine:
        for options, reason in WRONG_CALLS.items():
            assert reason in machine.run(
                f"cd /package/{first} && ./install.sh install {options}", check=False
            )
        assert "No such file" in machine.run("ls /opt/airbridge-worker /etc/airbridge", check=False)

        machine.run("install -D -m 0600 /package/worker.env /etc/airbridge/worker.env")
        given = (
            f"--gateway {platform.state.gateway_url} --region {REGION} --ca /package/ca.crt --join bound_key"
        )
        said = machine.run(f"cd /package/{first} && ./install.sh install {given} --name press-1 --slots 2")
        (line,) = (each for each in said.splitlines() if "airbridge worker bind" in each)
        words = line.partition("airbridge worker bind ")[2].split()
        assert "inactive" == machine.run("systemctl is-active airbridge-worker", check=False)
        command(airbridge, "worker", "bind", *words, "--dir", platform.directory.root)
        machine.run("systemctl start airbridge-worker")
        assert "success" == platform.run("on_a_host", {"seconds": 1}).state
        assert "joined 1 times" in machine.run(f"/package/{first}/install.sh doctor")

        machine.run(f"cd /package/{first} && ./install.sh uninstall --purge")
        machine.run("install -D -m 0600 /package/worker.env /etc/airbridge/worker.env")
        machine.run(
            f"cd /package/{first} && ./install.sh install {given} --token /package/join.token --name press-2"
        )
        machine.run("rm /etc/airbridge/join.token && systemctl restart airbridge-worker")
        assert "success" == platform.run("on_a_host", {"seconds": 1}).state
