"""The chart's pod as a container: the image under the restrictions, mounts and variables of the manifest, on a whole local platform."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.chart.charts import ROOT, Manifest, of_kind
from tests.support.platform import running, wait_for

from airbridge.control_plane.local.services import aws

TOOLS = ("podman", "buildah")
REGION = "eu-west-1"

DAG = """
import json
import os
from pathlib import Path
from airflow.sdk import DAG, task

def opens(path):
    # Not os.access: Landlock has no say in it.
    try:
        open(path).close()
    except OSError:
        return False
    return True

with DAG("in_a_pod"):
    @task(queue="eu-west-1")
    def looks():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return json.dumps({
            "uid": os.getuid(),
            "capabilities": int(status["CapEff"], 16),
            "no_new_privileges": int(status["NoNewPrivs"]),
            "seccomp": int(status["Seccomp"]),
            "root_is_writable": os.access("/opt", os.W_OK) or os.access("/usr", os.W_OK),
            "sees_token": opens("/etc/airbridge/join/token"),
        })
    looks()
"""

pytestmark = [
    pytest.mark.slow("make proof-host"),
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="make images-tools installs what this needs"
    ),
]


def command(*words: str | Path) -> str:
    environment = {"CONTAINERS_CONF": str(ROOT / "images/containers.conf"), **os.environ}
    done = subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def image() -> str:
    """Build the worker's image of the commit that is checked out, unless it is there; return its name."""
    revision = command("git", "rev-parse", "HEAD")
    name = f"localhost/airbridge-edge-worker:{revision[:12]}"
    if subprocess.run(["podman", "image", "exists", name], check=False).returncode:
        command(Path(sys.executable).with_name("airbridge-ci"), "build", "--base", "debian", "--out", "dist")
    return name


def options(pod: Manifest, given: Mapping[str, str], volumes: Mapping[str, Path]) -> list[str]:
    """Return podman's options for a pod's one container. `given` replaces variables; `volumes` are folders for volumes by name."""
    (container,) = pod["containers"]
    user, own = pod["securityContext"], container["securityContext"]
    words = [f"--user={user['runAsUser']}:{user['runAsGroup']}"]
    words += ["--read-only=true", "--read-only-tmpfs=false"] if own["readOnlyRootFilesystem"] else []
    words += [f"--cap-drop={each}" for each in own["capabilities"]["drop"]]
    words += [] if own["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges"]
    variables = {each["name"]: each.get("value", "edge-airbridge-worker-0") for each in container["env"]}
    variables |= given
    for name, value in variables.items():
        words.append(f"--env={name}={value.replace('$(POD_NAME)', variables['POD_NAME'])}")
    for mount in container["volumeMounts"]:
        read_only = ":ro" if mount.get("readOnly") else ""
        words.append(f"--volume={volumes[mount['name']]}:{mount['mountPath']}{read_only}")
    return words


def folders(pod: Manifest, below: Path, files: Mapping[str, Mapping[str, str]]) -> dict[str, Path]:
    """Make a folder for each volume, as Kubernetes does for the pod's group: secrets can be read, and not written to."""
    made = {}
    group = pod["securityContext"]["fsGroup"]
    for mount in pod["containers"][0]["volumeMounts"]:
        folder = made[mount["name"]] = below / mount["name"]
        folder.mkdir()
        for name, content in files.get(mount["name"], {}).items():
            (folder / name).write_text(content)
            (folder / name).chmod(0o440)
            os.chown(folder / name, 0, group)
        os.chown(folder, 0, group)
        folder.chmod(0o2775 if not mount.get("readOnly") else 0o2755)
    return made


@contextmanager
def started(name: str, words: list[str], of: str) -> Iterator[str]:
    command(
        "podman", "run", "--detach", "--name", name, "--network=host", "--log-driver=k8s-file", *words, of
    )
    try:
        yield name
    finally:
        subprocess.run(["podman", "rm", "--force", "--time=5", name], capture_output=True, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders to another user")
def test_pod_runs_tasks_and_drains(tmp_path: Path) -> None:
    """The container answers its probe, runs a task that sees the restrictions, and ends by itself, drained, on SIGTERM."""
    name = image()
    pod = of_kind("smallest", "StatefulSet")["spec"]["template"]["spec"]
    with running(workers_per_region=0) as platform:
        platform.add_dag("in_a_pod", DAG)
        created = command(
            Path(sys.executable).with_name("airbridge"),
            *("token", "create", "--region", REGION, "--pool", "default", "--json"),
            *("--dir", platform.directory.root),
        )
        token = json.loads(created)["token"]
        volumes = folders(
            pod,
            tmp_path,
            {"join": {"token": token}, "ca": {"ca.crt": platform.directory.ca_file.read_text()}},
        )
        given = {
            "AIRBRIDGE_WORKER_GATEWAY_URL": str(platform.state.gateway_url),
            "AIRBRIDGE_WORKER_REGION": REGION,
            **aws.CREDENTIALS,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        with started(f"airbridge-pod-{os.getpid()}", options(pod, given, volumes), name) as container:
            probe = pod["containers"][0]["startupProbe"]["exec"]["command"]
            answers = ["podman", "exec", container, *probe]
            wait_for(
                lambda: subprocess.run(answers, capture_output=True, check=False).returncode == 0,
                "the probe",
                120,
            )
            run = platform.run("in_a_pod")
            assert "success" == run.state
            seen = json.loads(platform.xcom(run, "looks"))
            assert {"uid": 10001, "capabilities": 0, "no_new_privileges": 1, "seccomp": 2} == {
                key: seen[key] for key in ("uid", "capabilities", "no_new_privileges", "seccomp")
            }
            assert not seen["root_is_writable"]
            assert not seen["sees_token"]
            command("podman", "stop", "--time=90", container)
            ended = json.loads(command("podman", "inspect", container))[0]["State"]
            assert 0 == ended["ExitCode"]
