"""Options of Airflow's configuration and variables that tasks see, in the runner on its configured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.runner.world import World, alive

CODE = """
import dataclasses
import os
from airflow.configuration import conf
from airflow.sdk import DAG, Variable, task
import acme_models

AT_IMPORT = conf.get("acme", "lake", fallback="absent")

@dataclasses.dataclass
class Order:
    number: int

with DAG("d") as dag:
    @task
    def sees():
        from airflow import settings
        return {
            "at_import": AT_IMPORT,
            "lake": conf.get("acme", "lake", fallback="absent"),
            "section": conf.getsection("acme"),
            "timezone": str(settings.TIMEZONE.name),
            "owner": conf.get("operators", "default_owner"),
            "dags_folder": [conf.get("core", "dags_folder"), settings.DAGS_FOLDER, os.path.dirname(__file__)],
            "sensitive": conf.get("core", "sensitive_var_conn_names"),
            "smtp": conf.get("smtp", "smtp_host", fallback="absent"),
        }

    @task
    def pushes():
        return [Order(7), acme_models.Item("x")]

    @task
    def pulls(ti=None):
        orders, items = ti.xcom_pull(task_ids="pushes")
        return [type(orders).__name__, orders.number, type(items).__name__, items.name]

    @task
    def waits(path):
        import time
        while not os.path.exists(path):
            time.sleep(0.05)
        return conf.get("acme", "lake", fallback="absent")

    @task
    def variable(name):
        return Variable.get(name, default="absent")

    sees(), pushes(), pulls(), waits("{folder}/go"), variable("colour")
"""
MODELS = "import attr\n@attr.define\nclass Item:\n    name: str\n"
OPTIONS = {
    "acme": {"lake": "s3://100%/x", "steps": "a\nb"},
    "core": {
        "default_timezone": "Europe/Berlin",
        "allowed_deserialization_classes": "airflow.* acme_models.* unusual_prefix_*",
        "sensitive_var_conn_names": "iban",
    },
    "operators": {"default_owner": "ann"},
    "smtp": {"smtp_host": "mail"},
}


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A runner whose tasks have `OPTIONS`."""
    world = World(tmp_path_factory.mktemp("configured"), options=OPTIONS)
    yield world
    world.close()


def shared_by(world: World) -> Path:
    """Return a directory that tasks see, as they do not see the worker's."""
    return world.folder.with_name(f"{world.folder.name}-shared")


def publish(world: World) -> Path:
    root = world.write(CODE.replace("{folder}", str(shared_by(world))))
    (root / "acme_models.py").write_text(MODELS)
    return root


def test_options_reach_tasks(configured: World) -> None:
    """In the DAG file and in its tasks, in what Airflow reads at import, and as sections; the worker adds its own."""
    root = publish(configured)
    seen = configured.do(configured.run(root, "sees")).proxy.pushed()
    assert (seen["at_import"], seen["lake"]) == ("s3://100%/x", "s3://100%/x")
    assert seen["section"] == {"lake": "s3://100%/x", "steps": "a\nb"}
    assert (seen["timezone"], seen["owner"], seen["smtp"]) == ("Europe/Berlin", "ann", "mail")
    assert set(seen["dags_folder"]) == {str(root)}
    assert {"iban", "access_key"} <= set(seen["sensitive"].split(","))


def test_classes_come_back_from_xcoms(configured: World) -> None:
    """Those of a module of the bundle, and those of the DAG file itself, also from another version on another worker."""
    first = publish(configured)
    pushed = configured.do(configured.run(first, "pushes")).proxy.pushed()
    configured.api.xcoms["d/manual__1/pushes/return_value"] = json.dumps(pushed)
    second = configured.write((first / "dag.py").read_text() + "# a later version\n")
    (second / "acme_models.py").write_text(MODELS)
    assert second != first
    assert configured.do(configured.run(second, "pulls")).proxy.pushed() == ["Order", 7, "Item", "x"]


def test_class_that_is_not_allowed_fails(world: World) -> None:
    """Airflow's allow-list holds in tasks, with Airflow's message."""
    root = publish(world)
    pushed = world.do(world.run(root, "pushes")).proxy.pushed()
    world.api.xcoms["d/manual__1/pushes/return_value"] = json.dumps(pushed)
    done = world.do(world.run(root, "pulls"))
    assert done.proxy.states == ["failed"]
    assert "allowed_deserialization_classes" in done.log


def test_changed_options_leave_running_tasks(own_world: World) -> None:
    """A task that runs keeps its options and its process; the next has the new ones; then the old zygote ends."""
    shared = shared_by(own_world)
    shared.mkdir()
    own_world.do(own_world.configure({"acme": {"lake": "old"}}))
    root = publish(own_world)
    running = own_world.do(own_world.spawn(root, "waits"))
    old = own_world.runner.zygote_pid
    own_world.do(own_world.configure({"acme": {"lake": "new"}}))
    assert own_world.do(own_world.run(root, "sees")).proxy.pushed()["lake"] == "new"
    assert own_world.runner.zygote_pid != old
    assert alive(old or 0)
    (shared / "go").touch()
    assert own_world.do(running.ended()).clean
    assert running.proxy.pushed() == "old"
    own_world.do(own_world.runner._end_retired())
    assert not alive(old or 0)


def test_same_options_keep_the_zygote(world: World) -> None:
    """Every renewal of the certificate brings them again."""
    before = world.runner.zygote_pid
    world.do(world.configure({}))
    assert world.runner.zygote_pid == before
    assert world.runner._configuring is None
