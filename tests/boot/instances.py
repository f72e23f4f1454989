"""EC2's part: instances, from the launch template's user data, each in a root and a network namespace of its own.

The root is this machine's files under a layer of its own, with `systemctl`, `docker` and `dnf` in place of a boot image's. The user data runs
as it stands. Docker's network on an instance is made as Docker makes it: a bridge, translated addresses, and the chain DOCKER-USER.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.boot.metadata import Identity
from tests.boot.tasks import Ecs
from tests.boot.wires import Namespace, command, ip, namespace

_SHIMS = Path(__file__).parent / "root"
_DOCKER = "172.17.0"
# Places of this machine that a root does not bring itself.
_BOUND = ("/dev", "/proc", "/sys")
# Directories that are each root's own.
_OWN = ("run", "tmp")
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Instance:
    """An instance: its id, its metadata, its root, and the boot script's process."""

    ecs: Ecs
    identity: Identity
    root: Path
    space: Namespace
    container: str
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """Return what the boot script, the units and the worker wrote."""
        files = [
            self.root / "var/log/cloud-init-output.log",
            *sorted((self.root / "run/units").glob("*.log")),
        ]
        texts = [
            f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files if file.exists()
        ]
        done = self.ecs.engine.attempt("logs", "--tail", "60", self.container)
        return "\n".join([*texts, f"--- {self.container}\n{done.stdout}{done.stderr}"])

    def unit(self, name: str) -> str:
        """Return a unit's state."""
        file = self.root / "run/units" / f"{name}.json"
        return str(json.loads(file.read_text())["active"]) if file.exists() else "missing"

    def inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the worker's container."""
        return self.ecs.engine.attempt("exec", self.container, *words)


@contextmanager
def instance(ecs: Ecs, region: str, group: str, instance_id: str) -> Iterator[Instance]:
    """Boot an instance of an autoscaling group from its launch template, for the length of a block."""
    template = launch_template(ecs, region, group)
    with ExitStack() as stack:
        space, address = stack.enter_context(ecs.network.host(instance_id))
        identity = _identity(ecs, region, template, instance_id)
        ecs.directory.instances[address] = identity
        stack.callback(ecs.directory.instances.pop, address)
        docker = stack.enter_context(_docker_network(space, f"{ecs.network.tag}-{instance_id}-d"))
        root = stack.enter_context(_root(ecs, instance_id))
        container = f"{ecs.network.tag}-{instance_id}-airbridge-worker"
        _settle(ecs, root, docker, f"{ecs.network.tag}-{instance_id}", region)
        script = root / "var/lib/cloud/user-data"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_bytes(base64.b64decode(template["UserData"]))
        process = _boot(ecs, root, space)
        booted = Instance(ecs, identity, root, space, container, process)
        stack.callback(_end, booted)
        yield booted


def launch_template(ecs: Ecs, region: str, group: str) -> dict[str, Any]:
    """Return the data of the launch template that a group's instances are started from, in the version that the group names."""
    scaling, ec2 = ecs.account.client("autoscaling", region), ecs.account.client("ec2", region)
    found = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"][0]
    named = found["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
    versions = ec2.describe_launch_template_versions(
        LaunchTemplateId=named["LaunchTemplateId"], Versions=[named["Version"]]
    )["LaunchTemplateVersions"]
    data: dict[str, Any] = versions[0]["LaunchTemplateData"]
    return data


def _identity(ecs: Ecs, region: str, template: dict[str, Any], instance_id: str) -> Identity:
    profile = template["IamInstanceProfile"]["Arn"].rpartition("/")[2]
    role = ecs.account.client("iam").get_instance_profile(InstanceProfileName=profile)["InstanceProfile"][
        "Roles"
    ][0]
    return Identity(
        instance_id, region, role["RoleName"], partial(ecs.account.session, role["Arn"], instance_id)
    )


@contextmanager
def _docker_network(space: Namespace, name: str) -> Iterator[Namespace]:
    """The namespace of an instance's containers, behind its addresses as Docker's bridge is."""
    with namespace(name[:60]) as inner:
        ip(
            "link",
            "add",
            "docker0",
            "netns",
            space.name,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            inner.name,
        )
        ip("-n", space.name, "address", "add", f"{_DOCKER}.1/16", "dev", "docker0")
        ip("-n", space.name, "link", "set", "docker0", "up")
        ip("-n", inner.name, "address", "add", f"{_DOCKER}.2/16", "dev", "eth0")
        ip("-n", inner.name, "link", "set", "eth0", "up")
        ip("-n", inner.name, "route", "add", "default", "via", f"{_DOCKER}.1")
        space.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        rules = (
            ("-N", "DOCKER-USER"),
            ("-I", "FORWARD", "-j", "DOCKER-USER"),
            (
                "-t",
                "nat",
                "-A",
                "POSTROUTING",
                "-s",
                f"{_DOCKER}.0/16",
                "!",
                "-o",
                "docker0",
                "-j",
                "MASQUERADE",
            ),
        )
        for rule in rules:
            space.run("iptables", "-w", *rule)
        yield inner


@contextmanager
def _root(ecs: Ecs, name: str) -> Iterator[Path]:
    """A root of its own: this machine's, with a layer that is thrown away."""
    base = ecs.folder / "roots" / name
    merged, layer = base / "root", base / "layer"
    for folder in (merged, layer):
        folder.mkdir(parents=True)
    command("mount", "-t", "tmpfs", "tmpfs", str(layer))
    try:
        for part in ("upper", "work"):
            (layer / part).mkdir()
        options = f"lowerdir=/,upperdir={layer}/upper,workdir={layer}/work"
        command("mount", "-t", "overlay", "overlay", "-o", options, str(merged))
        for place in _BOUND:
            command("mount", "--rbind", "--make-rslave", place, str(merged / place[1:]))
        for place in _OWN:
            command(
                "mount",
                "-t",
                "tmpfs",
                "-o",
                "mode=1777" if place == "tmp" else "mode=755",
                "tmpfs",
                str(merged / place),
            )
        for hidden in _hidden():
            target = merged / hidden.relative_to("/")
            target.mkdir(parents=True, exist_ok=True)
            command("mount", "--rbind", "--make-rslave", str(hidden), str(target))
        yield merged
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(merged)], check=False, capture_output=True)
        subprocess.run(["umount", "--lazy", str(layer)], check=False, capture_output=True)


def _hidden() -> Iterator[Path]:
    """Yield where this machine's programs lie, of what the root's own directories would hide: a clone may be anywhere."""
    for place in dict.fromkeys((_REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))):
        if place.parts[1] in _OWN:
            yield place


def _settle(ecs: Ecs, root: Path, docker: Namespace, prefix: str, region: str) -> None:
    """Put in what a boot image brings, and what leads the programs to this network."""
    for shim, name in (
        ("systemctl.py", "systemctl"),
        ("docker.py", "docker"),
        ("dnf.sh", "dnf"),
        ("aws.py", "aws"),
    ):
        text = (_SHIMS / shim).read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable}", 1)
        # By name and by path: the first place on PATH, and the one that the units name.
        for place in ("usr/local/sbin", "usr/bin"):
            target = root / place / name
            target.unlink(missing_ok=True)
            target.write_text(text)
            target.chmod(0o755)
    for file in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        (root / file).unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text(ecs.network.resolver.read_text())
    (root / "etc/ssl/certs/ca-certificates.crt").write_text(ecs.network.trusted.read_text())
    shutil.rmtree(root / "var/lib/airbridge", ignore_errors=True)
    shutil.rmtree(root / "root/.aws", ignore_errors=True)
    resolver = f"{ecs.network.resolver}:/etc/resolv.conf:ro"
    settings = {
        "root": str(root),
        "prefix": prefix,
        "pid": os.getpid(),
        "environ": ecs.engine.variables,
        "aws": ecs.aws,
        "options": [
            "--network", f"ns:{docker.path}", "--no-healthcheck", "--log-driver", "k8s-file", "--read-only-tmpfs=false",
            "--volume", resolver, *ecs.trust(_worker_image(ecs, region)),
        ],
    }  # fmt: skip
    (root / "run/docker-settings.json").write_text(json.dumps(settings))


def _worker_image(ecs: Ecs, region: str) -> str:
    """Return an image of the region's repository; where its packages lie is the same in every one."""
    return next(image for image in ecs.worker_images if f".ecr.{region}." in image)


def _boot(ecs: Ecs, root: Path, space: Namespace) -> subprocess.Popen[bytes]:
    """Run the user data as cloud-init does: as root, with a plain environment, its output in a log."""
    environ = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "AWS_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt",
        **({"CONTAINERS_CONF": os.environ["CONTAINERS_CONF"]} if "CONTAINERS_CONF" in os.environ else {}),
    }
    words = ["ip", "netns", "exec", space.name, "chroot", str(root), "/bin/bash", "/var/lib/cloud/user-data"]
    with (root / "var/log/cloud-init-output.log").open("wb") as log:
        return subprocess.Popen(
            words, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )


def _end(booted: Instance) -> None:
    """Cut the power: whatever runs in the namespace is killed."""
    booted.ecs.engine.attempt("rm", "--force", "--time", "20", booted.container)
    with suppress(RuntimeError):
        for pid in command("ip", "netns", "pids", booted.space.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)
    booted.process.wait(30)
