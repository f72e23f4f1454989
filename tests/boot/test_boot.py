"""What Terraform made boots, from task definitions and user data as they stand in the emulator, IAM enforced (`make infra-boot`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.boot import demo, work
from tests.boot.images import Build, rebuilt
from tests.boot.platform import SERVICES, Platform, deployed
from tests.boot.scaling import Pool
from tests.boot.sign_in import Person
from tests.boot.tasks import until
from tests.boot.wires import is_root

pytestmark = [pytest.mark.slow("make proof-aws"), pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def booting() -> Iterator[Platform]:
    """The stacks on an emulator, applied by the tutorial's commands, which printed what it says; nothing booted yet."""
    images = os.environ.get("AIRBRIDGE_IMAGES")
    if images is None:
        pytest.skip("make proof-aws boots what Terraform made")
    assert is_root(), "network namespaces and mounts need root"
    build = Build(Path(images).resolve())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airbridge-boot-")))
        # As a rollout leaves it: the digest before is admitted, and a wave can go back to it.
        earlier = rebuilt(build, "edge-worker", folder / "other")
        yield stack.enter_context(deployed(folder, build, demo.note, earlier))


@pytest.fixture(scope="module")
def token(booting: Platform) -> str:
    """The first token of the deployment."""
    return booting.first_token()


def test_migration_task_runs_to_its_end(booting: Platform) -> None:
    """The owner, who is no superuser, migrates over TLS; then every service's role has its password."""
    log = booting.migrate()
    assert "logins set: " in log, log[-2000:]


@pytest.mark.parametrize("service", SERVICES)
def test_service_is_healthy(booting: Platform, service: str) -> None:
    """The service's own health check passes, in its read-only root, with its own secrets and its database role."""
    task = booting.start(service)
    assert task.is_running()
    main = task.definition.container(service)
    assert main["readonlyRootFilesystem"]
    assert f"airbridge_{service.replace('-', '_')}" in {each["value"] for each in main["environment"]}
    with pytest.raises(RuntimeError, match="Read-only"):
        task.execute("touch", "/opt/written")
    task.execute("touch", "/tmp/written", "/run/airbridge/written")


def test_session_makes_the_first_token(booting: Platform, token: str) -> None:
    """An operator's session makes it, and the gateway accepts it at the port of the internal balancer."""
    assert {} == booting.workers(token)


def test_code_is_pushed(booting: Platform, token: str) -> None:
    """The gateway publishes the demo's DAG to every region's bucket, under its own role."""
    booting.follow(7)
    for region, outputs in booting.deployment.regions.items():
        s3 = booting.account.client("s3", region)
        keys = [
            each["Key"] for each in s3.list_objects_v2(Bucket=outputs["bundle_bucket"]).get("Contents", ())
        ]
        assert any(key.startswith("bundles/") for key in keys), region


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
def test_instance_joins_by_its_role(booting: Platform, token: str, region: str) -> None:
    """The group is scaled to one; the user data boots, and the worker enrols under the instance's id."""
    booted = booting.launch(region)
    name = booted.identity.instance
    until(f"{name} joined", lambda: name in booting.workers(token), lambda: booted.log, 300)
    assert 0 == booted.process.wait(120), booted.log
    assert {"active"} == {
        booted.unit(each) for each in ("airbridge-worker", "airbridge-drain", "airbridge-credentials")
    }


def test_tasks_do_not_reach_the_metadata(booting: Platform) -> None:
    """The host reads its credentials; a container on it gets no answer."""
    booted = booting.instances["eu-west-1"]
    program = "import urllib.request as u; u.urlopen('http://169.254.169.254/latest/meta-data/instance-id', timeout=5)"
    refused = booted.inside("python", "-c", program)
    assert refused.returncode
    assert "401" not in refused.stderr
    url = "http://169.254.169.254/latest/meta-data/instance-id"
    assert "401" == booted.space.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url)


def test_demo_is_green(booting: Platform) -> None:
    """A person signs in at the issuer and starts the demo: every task ran in the region of its data."""
    assert demo.run(booting), demo.logs(booting)


@pytest.fixture(scope="module")
def pool(booting: Platform) -> Pool:
    """The pool that the demo's European tasks ran on."""
    return Pool(booting, work.REGION, "default", [booting.instances[work.REGION]])


@pytest.fixture(scope="module")
def airflow(booting: Platform, token: str) -> Iterator[Person]:
    """A person whose DAG has a task in the pool."""
    booting.push(token, work.dags_folder(booting.ecs.folder))
    with booting.person() as person:
        person.wait_for_dag(work.STEADY, 180)
        person.unpause(work.STEADY)
        yield person


def test_idle_pool_drains_to_zero(pool: Pool) -> None:
    """The idle alarm's policy takes the last instance away, whose drain unit completes the hook."""
    pool.until_capacity(0, 300)
    assert [] == pool.instance_ids()


def test_waiting_work_starts_an_instance(pool: Pool, airflow: Person) -> None:
    """The backlog of one task rings the alarm of an empty pool; the instance that it starts runs the task."""
    run = work.start(airflow, 1)
    pool.until_capacity(1, 120)
    assert [work.done_by(airflow, run)] == pool.instance_ids()


def test_spot_notice_loses_no_task(pool: Pool, airflow: Person) -> None:
    """The noticed instance finishes its task and is replaced; what comes after the notice runs on the replacement."""
    (noticed,) = pool.running
    before = work.start(airflow, 25)
    assert noticed.identity.instance == work.runs_on(airflow, before)
    pool.notify(noticed)
    after = work.start(airflow, 1)
    (replacement,) = pool.boot_new()
    assert noticed.identity.instance == work.done_by(airflow, before)
    assert replacement.identity.instance == work.done_by(airflow, after)


def test_digest_rolls_under_a_task(booting: Platform, pool: Pool, airflow: Person, token: str) -> None:
    """Another digest is deployed, and the old instance leaves while a task runs: it ends where it began, the next one on the new digest."""
    (old,) = pool.running
    build = Build(booting.ecs.folder / "other")
    booting.release(build, work.REGION)
    before = work.start(airflow, 60)
    assert old.identity.instance == work.runs_on(airflow, before)
    # An instance refresh of a group of one launches before it terminates: at least 75 % are healthy.
    pool.platform.scale(work.REGION, "default", 2)
    (new,) = pool.boot_new()
    name = new.identity.instance
    until(f"{name} joined", lambda: name in booting.workers(token), lambda: new.log, 300)
    pool.end(old)
    after = work.start(airflow, 1)
    assert old.identity.instance == work.done_by(airflow, before)
    assert name == work.done_by(airflow, after)
    assert build.digest("edge-worker") in str(booting.workers(token)[name])
