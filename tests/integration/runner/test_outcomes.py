"""Features of the Task SDK, in a task that is forked from a parsed file and in one that parses it itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.runner.world import NOW, Run, World, ti_context

FILE = """
import os, sys, time
from datetime import datetime, timedelta

from airflow.exceptions import AirflowFailException, AirflowSkipException
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensorAsync
from airflow.hooks.base import BaseHook
from airflow.sdk import DAG, Asset, BaseOperator, Variable, get_current_context, setup, task, teardown

import helper

print("printed at import")

def note(context):
    print("callback", context["ti"].task_id, context.get("exception"))

class Resumes(BaseOperator):
    def execute(self, context):
        from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=5)), method_name="again", kwargs={"word": "kept"})

    def again(self, context, word, event=None):
        return [word, event]

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1), params={"p": 7},
         default_args={"on_failure_callback": note, "on_success_callback": note, "on_retry_callback": note}):
    @task
    def succeeds(day):
        ti = get_current_context()["ti"]
        ti.xcom_push("extra", [1, 2])
        return {"day": day, "hostname": ti.hostname, "bundle": ti.bundle_instance.version,
                "path": str(ti.bundle_instance.path), "log_url": ti.log_url, "helper": helper.WORD,
                "p": get_current_context()["params"]["p"]}
    succeeds("{{ ds }}")

    @task
    def works_hard():
        import subprocess, sys, time
        ballast = bytearray(b"x") * (300 << 20)
        until = time.process_time() + 0.5
        while time.process_time() < until:
            pass
        subprocess.run([sys.executable, "-c", "import time; any(time.process_time() >= 0.5 for _ in iter(int, 1))"], check=True)
        return len(ballast)
    works_hard()

    @task
    def fails():
        raise ValueError("as it must")
    fails()

    @task
    def fails_for_good():
        raise AirflowFailException("no use")
    fails_for_good()

    @task
    def fails_oddly():
        try:
            raise KeyError("cause")
        except KeyError as cause:
            raise type("customer 4711", (Exception,), {})("as it must") from cause
    fails_oddly()

    @task
    def recovers():
        import logging
        try:
            raise ValueError("caught")
        except ValueError:
            logging.getLogger("x").exception("Task failed with exception")
            raise LookupError("raised") from None
    recovers()

    @task
    def skips():
        raise AirflowSkipException("not today")
    skips()

    @task
    def pulls():
        return get_current_context()["ti"].xcom_pull(task_ids="succeeds", key="return_value")
    pulls()

    @task
    def reads():
        connection = BaseHook.get_connection("db")
        print("the password is", connection.password, "and the token", Variable.get("api_token"))
        return [connection.host, Variable.get("plain"), Variable.get("absent", default="none")]
    reads()

    @task
    def says_sunflower():
        print("the words are sunflower-sunflower")
    says_sunflower()

    @task
    def declares():
        import logging
        from airflow.sdk.execution_time.secrets_masker import mask_secret
        mask_secret("sesame-open")
        os.environ["AIRFLOW_CONN_FROM_ENV"] = "postgres://u:env-pass-word@h/x"
        password = BaseHook.get_connection("from_env").password
        print("printed", "sesame-open", password)
        print("to stderr", "sesame-open", file=sys.stderr)
        logging.getLogger("x").info("logged %s %s", "sesame-open", password)
        raise RuntimeError("raised sesame-open " + password)
    declares()

    @task
    def counts():
        return str(get_current_context()["dag_run"].conf["wei"])
    counts()

    Resumes(task_id="resumes")
    TimeDeltaSensorAsync(task_id="waits", delta=timedelta(days=30000))
    PythonSensor(task_id="reschedules", python_callable=lambda: False, mode="reschedule", poke_interval=60)
    EmptyOperator(task_id="empty_with_outlet", outlets=[Asset("s3://bucket/thing")])
    BashOperator(task_id="bash", bash_command="echo from bash; echo {{ ti.try_number }}")
    TriggerDagRunOperator(task_id="triggers", trigger_dag_id="other", conf={"a": 1})
    TriggerDagRunOperator(task_id="resets", trigger_dag_id="other", trigger_run_id="r", reset_dag_run=True)

    @task(execution_timeout=timedelta(seconds=1))
    def times_out():
        time.sleep(30)
    times_out()

    @task
    def doubles(x):
        return x * 2
    doubles.expand(x=[10, 20])

    @task(retries=1)
    def marks(x):
        ti = get_current_context()["ti"]
        ti.xcom_push("mark", x)
        if ti.try_number == 1:
            raise ValueError("as it must")
    marks.expand(x=[10, 20])

    @task.branch
    def branches():
        return "right"
    branches() >> [EmptyOperator(task_id="left"), EmptyOperator(task_id="right")]

    @task.short_circuit
    def short():
        return False
    short() >> EmptyOperator(task_id="after_short")

    @setup
    def sets_up():
        return "ready"

    @teardown
    def tears_down():
        print("torn down")
    sets_up() >> tears_down()

    @task
    def leaves_by_exit():
        sys.exit(3)
    leaves_by_exit()

    @task
    def says_what_it_sees():
        import gc, random, signal, socket
        fds = {int(fd): os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
        return {"environ": dict(os.environ), "fds": list(fds.values()), "sid": os.getsid(0) == os.getpid(),
                "signals": [signal.getsignal(number) == signal.SIG_DFL for number in (signal.SIGSEGV, signal.SIGCHLD, signal.SIGINT)], "gc": gc.isenabled(), "random": random.random()}
    says_what_it_sees()

    EmptyOperator(task_id="as_root", run_as_user="somebody-else")
"""


@pytest.fixture(params=[True, False], ids=["warm", "cold"])
def warm(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def run(world: World, warm: bool, task_id: str, **options: Any) -> Run:
    root = world.write(FILE)
    (root / "helper.py").write_text("WORD = 'from the bundle'")
    return world.do(world.run(root, task_id, warm=warm, **options))


def test_successful_task_has_full_context(world: World, warm: bool) -> None:
    """Return value, pushed XCom, rendered template, bundle, host name, log URL and params are as under Airflow."""
    done = run(world, warm, "succeeds")
    value = done.proxy.pushed()
    assert world.exit.clean
    assert done.proxy.states == ["success"]
    assert value["day"] == "2025-08-10"
    assert value["hostname"] == "edge-7"
    assert value["bundle"].startswith("sha256:")
    assert value["path"].endswith(value["bundle"].removeprefix("sha256:"))
    assert value["helper"] == "from the bundle"
    assert value["p"] == 7
    assert value["log_url"].endswith("/dags/d/runs/manual__1/tasks/succeeds?try_number=1")
    assert "//dags" not in value["log_url"]
    assert done.proxy.pushed("extra") == [1, 2]
    assert done.proxy.bodies("/rtif")[0]["op_args"] == ["2025-08-10"]


@pytest.mark.parametrize("wei", [2**64, -(2**63) - 1])
def test_conf_has_large_integers(world: World, warm: bool, wei: int) -> None:
    """A run's conf may have integers of more than 64 bits."""
    dag_run = {**ti_context("d")["dag_run"], "conf": {"wei": wei}}
    done = run(world, warm, "counts", dag_run=dag_run)
    assert done.proxy.states == ["success"]
    assert done.proxy.pushed() == str(wei)


def test_use_of_the_process_is_known(world: World, warm: bool) -> None:
    """CPU time of the task's process and of what it has waited for, and its peak memory, come with the exit."""
    run(world, warm, "works_hard")
    used = world.exit.used
    assert used is not None
    assert 1.0 <= used.cpu_seconds < 30
    assert 300 << 20 <= used.peak_memory_bytes < 1 << 30


def test_log_has_import_task_and_callbacks(world: World, warm: bool) -> None:
    """A file parsed ahead of time leaves the same lines in the task's log as one parsed by the task."""
    done = run(world, warm, "succeeds")
    assert [line["event"] for line in done.events if line["event"] == "printed at import"] == [
        "printed at import"
    ]
    assert any(line["event"].startswith("Filling up the DagBag") for line in done.events)
    assert any(line["event"] == "callback succeeds None" for line in done.events)
    assert all({"timestamp", "level", "event"} <= line.keys() for line in done.events)


def test_failing_task_logs_traceback(world: World, warm: bool) -> None:
    """The state is failed, the failure callback ran, the log has the exception."""
    done = run(world, warm, "fails")
    assert done.proxy.states == ["failed"]
    assert "as it must" in done.log
    assert any(line["event"].startswith("callback fails as it must") for line in done.events)
    assert world.exit.clean


@pytest.mark.parametrize(
    ("task_id", "name"),
    [
        ("fails", "ValueError"),
        ("fails_for_good", "AirflowFailException"),
        ("recovers", "LookupError"),
        ("fails_oddly", ""),
        ("skips", ""),
        ("succeeds", ""),
        ("leaves_by_exit", ""),
    ],
)
def test_exception_class_is_reported(world: World, task_id: str, name: str) -> None:
    """The agent learns the class of the exception that failed the task, if its name is one of Python; no value of it."""
    run(world, True, task_id)
    assert name == world.exit.exception


def test_failing_task_is_up_for_retry(world: World, warm: bool) -> None:
    """`should_retry` of the grant's context decides."""
    assert run(world, warm, "fails", should_retry=True, max_tries=2).proxy.states == ["up_for_retry"]


def test_fail_exceptions_do_not_retry(world: World, warm: bool) -> None:
    """AirflowFailException ends the task for good."""
    assert run(world, warm, "fails_for_good", should_retry=True).proxy.states == ["failed"]


def test_a_skipping_task_is_skipped(world: World, warm: bool) -> None:
    """AirflowSkipException ends the task as skipped."""
    assert run(world, warm, "skips").proxy.states == ["skipped"]


def test_xcoms_are_pulled(world: World, warm: bool) -> None:
    """A task pulls through the proxy what another one pushed."""
    world.api.xcoms["d/manual__1/succeeds/return_value"] = '{"deep": [1]}'
    assert run(world, warm, "pulls").proxy.pushed() == {"deep": [1]}


def test_secrets_of_connections_are_masked(world: World, warm: bool) -> None:
    """Connections and variables are read through the proxy, and the log has stars for their secrets."""
    world.api.connections["db"] = {"conn_type": "postgres", "host": "h", "password": "hunter2-hunter2"}
    world.api.variables |= {"plain": "seen", "api_token": "tok-tok-tok"}
    done = run(world, warm, "reads")
    assert done.proxy.pushed() == ["h", "seen", "none"]
    assert "hunter2" not in done.log
    assert "tok-tok" not in done.log
    assert "the password is *** and the token ***" in done.log


def test_supervisor_resets_secrets_between_tasks(world: World, warm: bool) -> None:
    """Secrets that were masked in one task's log are not masked in the next one's of the same supervisor."""
    world.api.connections["db"] = {"conn_type": "postgres", "host": "h", "password": "sunflower-sunflower"}
    world.api.variables |= {"plain": "seen", "api_token": "tok-tok-tok"}
    first = run(world, warm, "reads")
    # Time for the first supervisor to become idle: the second task must get the same one.
    world.do(asyncio.sleep(0.2))
    second = run(world, warm, "says_sunflower")
    assert second.task.pid == first.task.pid
    assert "the password is ***" in first.log
    assert "sunflower-sunflower" in second.log


def test_secrets_of_task_are_masked(world: World, warm: bool) -> None:
    """Secrets of a secrets backend's connection, and those that the task declares, are masked: logged, raised or printed."""
    done = run(world, warm, "declares")
    assert done.proxy.states == ["failed"]
    assert "sesame-open" not in done.log
    assert "env-pass-word" not in done.log
    # Printed (twice), to stderr, logged (twice) and raised.
    assert done.log.count("***") >= 5


def test_deferred_task_resumes(world: World, warm: bool) -> None:
    """The deferral carries trigger and method; the resumed task gets `next_kwargs`."""
    deferred = run(world, warm, "resumes")
    assert deferred.proxy.states == ["deferred"]
    body = deferred.proxy.bodies("/state")[0]
    assert body["next_method"] == "again"
    assert "TimeDeltaTrigger" in body["classpath"] or "DateTimeTrigger" in body["classpath"]
    resumed = run(
        world,
        warm,
        "resumes",
        next_method="again",
        next_kwargs={"__type": "dict", "__var": {"word": "kept", "event": "ding"}},
    )
    assert resumed.proxy.pushed() == ["kept", "ding"]
    assert resumed.proxy.states == ["success"]


def test_sensors_defer_and_reschedule(world: World, warm: bool) -> None:
    """An async sensor defers, and one in reschedule mode reschedules."""
    assert run(world, warm, "waits").proxy.states == ["deferred"]
    assert run(world, warm, "reschedules").proxy.states == ["up_for_reschedule"]


def test_existing_run_is_reset(world: World, warm: bool) -> None:
    """TriggerDagRunOperator clears a run that exists already, if it is told to."""
    world.api.statuses["dag-runs/other/r"] = [409]
    done = run(world, warm, "resets")
    assert [(call.method, call.path) for call in done.proxy.calls if call.path.startswith("dag-runs/")] == [
        ("POST", "dag-runs/other/r"),
        ("POST", "dag-runs/other/r/clear"),
    ]
    assert done.proxy.states == ["success"]


def test_outlets_are_validated_and_reported(world: World, warm: bool) -> None:
    """An asset outlet is part of the success report."""
    done = run(world, warm, "empty_with_outlet")
    body = done.proxy.bodies("/state")[0]
    assert body["state"] == "success"
    assert body["task_outlets"][0]["uri"] == "s3://bucket/thing"


def test_bash_output_is_logged(world: World, warm: bool) -> None:
    """A child process of a task writes to the task's log."""
    done = run(world, warm, "bash")
    assert done.proxy.states == ["success"]
    assert any(line["event"] == "from bash" for line in done.events)


def test_execution_timeout_fails_the_task(world: World, warm: bool) -> None:
    """The task fails after its own timeout."""
    done = run(world, warm, "times_out")
    assert done.proxy.states == ["failed"]
    assert "AirflowTaskTimeout" in done.log


def test_mapped_tasks_get_their_element(world: World, warm: bool) -> None:
    """Each map index renders its own argument."""
    assert [run(world, warm, "doubles", map_index=index).proxy.pushed() for index in (0, 1)] == [20, 40]


def test_retried_mapped_task_clears_its_xcoms(world: World, warm: bool) -> None:
    """A try that starts with an XCom of the try before deletes it, under the map index of the task."""
    first = run(world, warm, "marks", map_index=1, should_retry=True, max_tries=1)
    assert first.proxy.states == ["up_for_retry"]
    second = run(world, warm, "marks", map_index=1, try_number=2, max_tries=1, xcom_keys_to_clear=["mark"])
    deleted = [(call.path, call.query) for call in second.proxy.calls if call.method == "DELETE"]
    assert deleted == [("xcoms/d/manual__1/marks/mark", "map_index=1")]
    assert second.proxy.states == ["success"]


def test_branches_and_short_circuits_skip_downstream(world: World, warm: bool) -> None:
    """Both report to the API which tasks to skip, and succeed."""
    for task_id, skipped in (("branches", [["left", -1]]), ("short", ["after_short"])):
        done = run(world, warm, task_id)
        assert done.proxy.states == ["success"]
        assert done.proxy.bodies("/skip-downstream") == [{"tasks": skipped}]


def test_setup_and_teardown_run(world: World, warm: bool) -> None:
    """Setup and teardown tasks run like any other task."""
    assert run(world, warm, "sets_up").proxy.states == ["success"]
    assert run(world, warm, "tears_down").proxy.states == ["success"]


def test_leaving_by_sys_exit_fails(world: World, warm: bool) -> None:
    """A task that raises SystemExit fails."""
    assert run(world, warm, "leaves_by_exit").proxy.states == ["failed"]


def test_run_as_user_is_refused(world: World, warm: bool) -> None:
    """The task fails, and its log names the remedy."""
    done = run(world, warm, "as_root")
    assert done.proxy.states == ["failed"]
    assert "run_as_user is not supported" in done.log


def test_unknown_task_fails(world: World, warm: bool) -> None:
    """A task that the file does not have fails, and its log gives the reason."""
    done = run(world, warm, "absent")
    assert done.proxy.states == ["failed"]
    assert "Task not found in DAG" in done.log


def test_import_error_is_logged(world: World, warm: bool) -> None:
    """The import error's traceback is in the task's log."""
    root = world.write("from airflow.sdk import DAG\nraise RuntimeError('broken at import')\n")
    done = world.do(world.run(root, "any", warm=warm))
    assert done.proxy.states == ["failed"]
    assert "broken at import" in done.log
    assert "DAG not found" in done.log


def test_task_environment_is_clean(world: World, warm: bool) -> None:
    """A task has no settings or secrets in its environment, no foreign descriptors, its own session, default signals."""
    seen = run(world, warm, "says_what_it_sees").proxy.pushed()
    assert not [
        name for name in seen["environ"] if name.startswith("AIRBRIDGE_") or "VIRTUAL_ENV_MODE" in name
    ]
    assert seen["environ"]["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "airflow-db-not-allowed:///"
    assert seen["environ"]["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] == "d"
    assert not [
        target for target in seen["fds"] if "memfd" in target or "/logs/" in target or "pidfd" in target
    ]
    assert sum(target.startswith("socket") for target in seen["fds"]) <= 7
    assert seen["sid"]
    assert seen["signals"] == [True, True, True]
    assert seen["gc"]


def test_no_start_and_heartbeat_calls(world: World, warm: bool) -> None:
    """The grant is the start, and the lease the heartbeat."""
    done = run(world, warm, "bash")
    assert not [call.path for call in done.proxy.calls if call.path.endswith(("/run", "/heartbeat"))]


def test_dag_run_times_reach_the_context(world: World) -> None:
    """The run context of the grant is the task's."""
    root = world.write(
        "from airflow.sdk import DAG, task, get_current_context\n"
        "with DAG('d'):\n    @task\n    def t():\n        return get_current_context()['ts']\n    t()\n"
    )
    assert world.do(world.run(root, "t")).proxy.pushed().startswith(NOW[:19])
