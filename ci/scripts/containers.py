"""Shared parts of the scripts that run the images: a registry on this machine, publishing to it, and containers of what was pulled."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.services import aws

USER = 10001
ROOT = Path(__file__).resolve().parents[2]
HARDENED = (
    "--read-only", "--tmpfs", "/tmp:rw,mode=1777",  # noqa: S108  # the container's own
    "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--network", "host", "--user", f"{USER}:{USER}", "--log-driver", "k8s-file",
)  # fmt: skip


_BEGUN = time.monotonic()


def report(text: str) -> None:
    print(f"{time.monotonic() - _BEGUN:6.1f} s  {text}", file=sys.stderr, flush=True)


def run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{words[0]} {words[1] if len(words) > 1 else ''} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_true(what: str, check: Any, seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError, OSError, ValueError):
            if found := check():
                return found
        time.sleep(0.5)
    sys.exit(f"{what}: not within {seconds:.0f} s")


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": address},
    }
    (folder / "registry.yml").write_text(json.dumps(config))
    with (folder / "registry.log").open("wb") as log:
        command = ["docker-registry", "serve", str(folder / "registry.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        await_true("the registry", lambda: httpx.get(f"http://{address}/v2/").is_success)
        yield address
    finally:
        process.terminate()
        process.wait()


def publish(
    dist: Path, address: str, folder: Path, *, key: Path | None = None, root: Path = ROOT
) -> dict[str, str]:
    """Sign, push, check and pull; returns the reference of each image. Without a key, with one made for this."""
    ci = ("airbridge-ci",)
    manifest = shutil.copyfile(dist / "release.json", folder / "release.json")
    keys = root / "images/release-keys.toml"
    if key is None:
        key, keys = folder / "release.key", folder / "keys.toml"
        keys.write_text(run(*ci, "keygen", key, "--owner", "this demo"))
    run(*ci, "sign", "--key", key, manifest)
    shutil.copytree(dist / "images", folder / "dist" / "images", copy_function=os.link)
    shutil.copytree(dist / "sbom", folder / "dist" / "sbom", copy_function=os.link)
    shutil.copyfile(manifest, folder / "dist" / "release.json")
    where = ("--root", root, "--plain-http", "--keys", keys)
    published = json.loads(
        run(*ci, "publish", f"{address}/airbridge", "--out", folder / "dist", "--json", *where)
    )
    run(*ci, "verify-published", f"{address}/airbridge", manifest, *where)
    references = {entry["image"]: entry["reference"] for entry in published}
    for reference in references.values():
        report(f"pulling {reference}")
        run("podman", "pull", "--quiet", "--tls-verify=false", reference)
    return references


def handed_over(folder: Path, files: dict[str, str | Path]) -> Path:
    """A folder that belongs to the images' user, with these files in it."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        target = folder / name
        if isinstance(content, Path):
            shutil.copytree(content, target) if content.is_dir() else shutil.copyfile(content, target)
        else:
            target.write_text(content)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER)
    folder.chmod(0o700)
    return folder


@contextmanager
def container(name: str, image: str, *options: str | Path, command: tuple[str, ...] = ()) -> Iterator[str]:
    run("podman", "run", "--detach", "--name", name, *HARDENED, *options, image, *command)
    try:
        yield name
    finally:
        run("podman", "stop", "--time", "60", name)
        run("podman", "rm", "--force", "--volumes", name)


@contextmanager
def worker(
    directory: StateDir, folder: Path, reference: str, *, region: str, name: str, pool: str = "default"
) -> Iterator[str]:
    """A worker of the platform in `directory`, in a container of that image; yields the container's name."""
    platform = json.loads(directory.platform_file.read_text())
    where = ("--region", region, "--pool", pool, "--dir", directory.root)
    token = json.loads(run("airbridge", "token", "create", *where, "--json"))["token"]
    given = handed_over(folder / name, {"join.token": token, "ca.crt": directory.ca_file})
    settings = {
        "AIRBRIDGE_WORKER_GATEWAY_URL": platform["gateway_url"],
        "AIRBRIDGE_WORKER_CA_FILE": "/etc/airbridge/worker/ca.crt",
        "AIRBRIDGE_WORKER_JOIN_TOKEN_FILE": "/etc/airbridge/worker/join.token",
        "AIRBRIDGE_WORKER_REGION": region,
        "AIRBRIDGE_WORKER_POOL": pool,
        "AIRBRIDGE_WORKER_NAME": name,
        "AIRBRIDGE_WORKER_IMAGE_DIGEST": reference.partition("@")[2],
        "AIRBRIDGE_WORKER_TASK_ENV": json.dumps(
            {**aws.CREDENTIALS, "AWS_DEFAULT_REGION": region, "AWS_ENDPOINT_URL": platform["aws_url"]}
        ),
        **aws.CREDENTIALS,
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    options = [word for key, value in settings.items() for word in ("--env", f"{key}={value}")]
    unique = f"airbridge-{name}-{os.getpid()}"
    volumes = ("--volume", f"{unique}:/var/lib/airbridge", "--volume", f"{given}:/etc/airbridge/worker:ro")
    try:
        with container(unique, reference, *options, *volumes):
            yield unique
    finally:
        run("podman", "volume", "rm", "--force", unique)
