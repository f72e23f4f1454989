"""Extra links of operators, which Airflow pushes past the XCom backend, where XComs stay in the region."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.runner.world import Run, World

from airbridge.core.residency import settings as residency
from airbridge.core.residency import xcoms

FILE = """
from datetime import datetime

from airflow.exceptions import AirflowSkipException
from airflow.sdk import DAG, BaseOperator, BaseOperatorLink

class Link(BaseOperatorLink):
    name = "runs"

    def get_link(self, operator, *, ti_key):
        return "https://runs.example/" + "x" * operator.length

class Linked(BaseOperator):
    operator_extra_links = (Link(),)

    def __init__(self, *, skips=False, length=0, **kwargs):
        super().__init__(**kwargs)
        self.skips, self.length = skips, length

    def execute(self, context):
        if self.skips:
            raise AirflowSkipException("there is one already")

def note(context):
    print("callback", context["ti"].task_id)

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1),
         default_args={"on_success_callback": note, "on_skipped_callback": note}):
    Linked(task_id="skips", skips=True)
    Linked(task_id="succeeds")
    Linked(task_id="skips_long", skips=True, length=100)
"""
KEY = "_link_Link"


def runner(folder: Any, inline_bytes: int, **options: dict[str, str]) -> World:
    return World(
        folder,
        options={
            "core": {"xcom_backend": xcoms.BACKEND},
            xcoms.SECTION: {xcoms.INLINE: str(inline_bytes)},
            **options,
        },
    )


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A runner of a strict region."""
    world = runner(tmp_path_factory.mktemp("strict"), 0, **{residency.SECTION: {"mode": "strict"}})
    yield world
    world.close()


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A runner of a region that stores XComs of more than 64 bytes."""
    world = runner(tmp_path_factory.mktemp("bounded"), 64)
    yield world
    world.close()


def run(world: World, task_id: str, *, refused: bool) -> Run:
    """Run a task; with `refused` its link is refused, as the gateway does by the region's rules."""
    path = f"xcoms/d/manual__1/{task_id}/{KEY}"
    world.api.denied = {path: "residency: an XCom"} if refused else {}
    return world.do(world.run(world.write(FILE), task_id))


def pushed(done: Run) -> list[str]:
    return [call.path for call in done.proxy.calls if call.path.startswith("xcoms/")]


@pytest.mark.parametrize(("task_id", "state"), [("skips", "skipped"), ("succeeds", "success")])
def test_strict_region_pushes_no_link(strict: World, task_id: str, state: str) -> None:
    """A task with an extra link ends in its own state, its callbacks run, and the link does not leave the host."""
    done = run(strict, task_id, refused=True)
    assert (done.proxy.states, pushed(done)) == ([state], []), done.log
    assert any(line["event"] == f"callback {task_id}" for line in done.events)
    assert any(line["event"].startswith("Extra link left out") for line in done.events)


def test_small_link_is_pushed(bounded: World) -> None:
    """A link within the region's bound is an XCom in Airflow's database, where the UI finds it."""
    done = run(bounded, "skips", refused=False)
    assert (done.proxy.states, done.proxy.pushed(KEY)) == (["skipped"], "https://runs.example/")


def test_large_link_is_left_out(bounded: World) -> None:
    """A link above the bound is left out, and the task is skipped as it was."""
    done = run(bounded, "skips_long", refused=True)
    assert (done.proxy.states, pushed(done)) == (["skipped"], []), done.log
