"""Values that the control plane cannot store are refused where a task writes them: the task itself gets the error.

Cases of https://github.com/apache/airflow/issues/69063 and /65379 (U+0000), /48852 and /64628 (large values).
"""

from __future__ import annotations

import json

import pytest
from tests.integration.runner.world import World

FILE = """
from airflow.sdk import DAG, Variable, get_current_context, task

with DAG("d", schedule=None):
    def make(name, write):
        @task(task_id=name)
        def writes():
            value = write(get_current_context()["ti"])
            get_current_context()["ti"].xcom_push("went_on", True)
            return value
        writes()

    make("returns_nul", lambda ti: {"column": "fixed\\x00width"})
    make("pushes_nul", lambda ti: ti.xcom_push("note", "a\\x00b"))
    make("long_key", lambda ti: ti.xcom_push("k" * 513, 1))
    make("key_with_nul", lambda ti: ti.xcom_push("a\\x00b", 1))
    make("not_a_number", lambda ti: ti.xcom_push("n", float("nan")))
    make("too_large", lambda ti: ti.xcom_push("big", '"' * 16_500_000))
    make("sets_nul", lambda ti: Variable.set("colour", "v\\x00w"))
    make("sets_long_name", lambda ti: Variable.set("v" * 251, "x"))
    make("odd_keys", lambda ti: [ti.xcom_push(key, key) for key in ("a?b", "a#b", "a%41", "..", "new\\nline", "ä/ö")])

    @task
    def catches():
        from airflow.exceptions import AirflowException
        try:
            get_current_context()["ti"].xcom_push("note", "a\\x00b")
        except Exception as error:
            return str(error)
    catches()

    @task
    def rendered(text):
        return len(text)
    rendered("template\\x00field")
"""


@pytest.mark.parametrize(
    ("task_id", "name", "reason"),
    [
        ("returns_nul", "XCom 'return_value'", "NUL character"),
        ("pushes_nul", "XCom 'note'", "NUL character"),
        ("long_key", "XCom 'kkk", "a key of 513 characters is refused; allowed: 1 to 512"),
        ("key_with_nul", "XCom 'a", "NUL character"),
        ("not_a_number", "XCom 'n'", "finite numbers"),
        ("too_large", "XCom 'big'", "a value of 33000002 characters of JSON is refused; allowed: at most"),
        ("rendered", "the rendered fields", "NUL character"),
    ],
)
def test_refused_value_fails_its_write(world: World, task_id: str, name: str, reason: str) -> None:
    """The write raises in the task, nothing of it reaches the proxy, and the task's log names the write and the limit."""
    run = world.do(world.run(world.write(FILE), task_id, should_retry=True, max_tries=1))
    assert run.proxy.states == ["up_for_retry"]
    error = json.dumps([each for each in run.events if "API_SERVER_ERROR" in json.dumps(each)])
    assert name in error.replace("\\\\", ""), run.log
    assert reason in error
    assert not any("\\u0000" in (call.body or "") for call in run.proxy.calls)
    assert run.proxy.pushed("went_on") is None or task_id == "returns_nul"


@pytest.mark.parametrize(
    ("task_id", "name"), [("sets_nul", "variable 'colour'"), ("sets_long_name", "variable 'vvv")]
)
def test_refused_variable_is_logged(world: World, task_id: str, name: str) -> None:
    """Airflow's `Variable.set` logs an error and goes on, under every executor: the log names the variable."""
    run = world.do(world.run(world.write(FILE), task_id))
    assert not any(call.path.startswith("variables/") for call in run.proxy.calls)
    assert name in run.log


def test_task_may_handle_refused_value(world: World) -> None:
    """The error is an exception like any other: a task that catches it goes on."""
    run = world.do(world.run(world.write(FILE), "catches"))
    assert run.proxy.states == ["success"]
    assert "NUL character" in run.proxy.pushed()


def test_keys_are_written_unchanged(world: World) -> None:
    """Characters that mean something in a URL are part of the key, and no other key is written instead."""
    run = world.do(world.run(world.write(FILE), "odd_keys"))
    assert run.proxy.states == ["success"], run.log
    written = {
        key.rsplit("/writes/", 1)[-1].removeprefix("d/manual__1/odd_keys/"): json.loads(value)
        for key, value in world.api.xcoms.items()
    }
    for key in ("a?b", "a#b", "a%41", "..", "new\nline", "ä/ö"):
        assert written[key] == key
