"""What the Task SDK offers holds in a task that is forked from a parsed file, and in one that parses it itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.runner.world import NOW, Run, World

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
    def fails():
        raise ValueError("as it must")
    fails()

    @task
    def fails_for_good():
        raise AirflowFailException("no use")
    fails_for_good()

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

    Resumes(task_id="resumes")
    TimeDeltaSensorAsync(task_id="waits", delta=timedelta(days=30000))
    PythonSensor(task_id="reschedules", python_callable=lambda: False, mode="reschedule", poke_interval=60)
    EmptyOperator(task_id="empty_with_outlet", outlets=[Asset("s3://bucket/thing")])
    BashOperator(task_id="bash", bash_command="echo from bash; echo {{ ti.try_number }}")
    TriggerDagRunOperator(task_id="triggers", trigger_dag_id="other", conf={"a": 1})

    @task(execution_timeout=timedelta(seconds=1))
    def times_out():
        time.sleep(30)
    times_out()

    @task
    def doubles(x):
        return x * 2
    doubles.expand(x=[10, 20])

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


def test_a_task_succeeds_and_knows_its_bundle_worker_and_context(world: World, warm: bool) -> None:
    """Return value, pushed XCom, rendered template, bundle, host name, log URL and params are as under Airflow."""
    done = run(world, warm, "succeeds")
    value = done.relay.pushed()
    assert world.exit.clean
    assert done.relay.states == ["success"]
    assert value["day"] == "2025-08-10"
    assert value["hostname"] == "edge-7"
    assert value["bundle"].startswith("sha256:")
    assert value["path"].endswith(value["bundle"].removeprefix("sha256:"))
    assert value["helper"] == "from the bundle"
    assert value["p"] == 7
    assert "/dags/d/runs/manual__1/tasks/succeeds" in value["log_url"]
    assert done.relay.pushed("extra") == [1, 2]
    assert done.relay.bodies("/rtif")[0]["op_args"] == ["2025-08-10"]


def test_the_log_has_what_the_file_printed_at_import_and_what_the_task_and_its_callbacks_say(
    world: World, warm: bool
) -> None:
    """A file parsed ahead of time leaves the same traces in the task's log as one parsed by the task."""
    done = run(world, warm, "succeeds")
    assert [line["event"] for line in done.events if line["event"] == "printed at import"] == [
        "printed at import"
    ]
    assert any(line["event"].startswith("Filling up the DagBag") for line in done.events)
    assert any(line["event"] == "callback succeeds None" for line in done.events)
    assert all({"timestamp", "level", "event"} <= line.keys() for line in done.events)


def test_a_failing_task_fails_with_its_traceback_in_the_log(world: World, warm: bool) -> None:
    """The state is failed, the failure callback ran, the log has the exception."""
    done = run(world, warm, "fails")
    assert done.relay.states == ["failed"]
    assert "as it must" in done.log
    assert any(line["event"].startswith("callback fails as it must") for line in done.events)
    assert world.exit.clean


def test_a_failing_task_with_retries_left_is_up_for_retry(world: World, warm: bool) -> None:
    """`should_retry` of the grant's context decides."""
    assert run(world, warm, "fails", should_retry=True, max_tries=2).relay.states == ["up_for_retry"]


def test_fail_exceptions_do_not_retry(world: World, warm: bool) -> None:
    """AirflowFailException ends the task for good."""
    assert run(world, warm, "fails_for_good", should_retry=True).relay.states == ["failed"]


def test_a_skipping_task_is_skipped(world: World, warm: bool) -> None:
    """AirflowSkipException."""
    assert run(world, warm, "skips").relay.states == ["skipped"]


def test_xcoms_are_pulled_over_the_relay(world: World, warm: bool) -> None:
    """What one task pushed the next one pulls."""
    world.api.xcoms["d/manual__1/succeeds/return_value"] = '{"deep": [1]}'
    assert run(world, warm, "pulls").relay.pushed() == {"deep": [1]}


def test_connections_and_variables_are_read_and_their_secrets_masked(world: World, warm: bool) -> None:
    """Secrets come over the relay, and the log has stars for them."""
    world.api.connections["db"] = {"conn_type": "postgres", "host": "h", "password": "hunter2-hunter2"}
    world.api.variables |= {"plain": "seen", "api_token": "tok-tok-tok"}
    done = run(world, warm, "reads")
    assert done.relay.pushed() == ["h", "seen", "none"]
    assert "hunter2" not in done.log
    assert "tok-tok" not in done.log
    assert "the password is *** and the token ***" in done.log


def test_a_supervisor_forgets_the_secrets_of_one_task_before_the_next(world: World, warm: bool) -> None:
    """What masked one task's log is no secret of the next one, that the same supervisor sees through."""
    world.api.connections["db"] = {"conn_type": "postgres", "host": "h", "password": "sunflower-sunflower"}
    world.api.variables |= {"plain": "seen", "api_token": "tok-tok-tok"}
    first = run(world, warm, "reads")
    world.do(asyncio.sleep(0.2))
    second = run(world, warm, "says_sunflower")
    assert second.task.pid == first.task.pid
    assert "the password is ***" in first.log
    assert "sunflower-sunflower" in second.log


def test_secrets_that_only_the_task_knows_are_masked_as_well(world: World, warm: bool) -> None:
    """Those of a secrets backend's connection, and those that the task declares: logged, raised or printed."""
    done = run(world, warm, "declares")
    assert done.relay.states == ["failed"]
    assert "sesame-open" not in done.log
    assert "env-pass-word" not in done.log
    assert done.log.count("***") >= 5


def test_a_task_defers_and_resumes_with_its_arguments(world: World, warm: bool) -> None:
    """The deferral carries trigger and method; the resumed task gets `next_kwargs`."""
    deferred = run(world, warm, "resumes")
    assert deferred.relay.states == ["deferred"]
    body = deferred.relay.bodies("/state")[0]
    assert body["next_method"] == "again"
    assert "TimeDeltaTrigger" in body["classpath"] or "DateTimeTrigger" in body["classpath"]
    resumed = run(
        world,
        warm,
        "resumes",
        next_method="again",
        next_kwargs={"__type": "dict", "__var": {"word": "kept", "event": "ding"}},
    )
    assert resumed.relay.pushed() == ["kept", "ding"]
    assert resumed.relay.states == ["success"]


def test_sensors_defer_and_reschedule(world: World, warm: bool) -> None:
    """An async sensor and one in reschedule mode."""
    assert run(world, warm, "waits").relay.states == ["deferred"]
    assert run(world, warm, "reschedules").relay.states == ["up_for_reschedule"]


def test_outlets_are_validated_and_reported(world: World, warm: bool) -> None:
    """An asset outlet is part of the success report."""
    done = run(world, warm, "empty_with_outlet")
    body = done.relay.bodies("/state")[0]
    assert body["state"] == "success"
    assert body["task_outlets"][0]["uri"] == "s3://bucket/thing"


def test_bash_runs_and_its_output_is_logged(world: World, warm: bool) -> None:
    """A child process of a task writes to the task's log."""
    done = run(world, warm, "bash")
    assert done.relay.states == ["success"]
    assert any(line["event"] == "from bash" for line in done.events)


def test_execution_timeout_strikes(world: World, warm: bool) -> None:
    """The task fails after its own timeout."""
    done = run(world, warm, "times_out")
    assert done.relay.states == ["failed"]
    assert "AirflowTaskTimeout" in done.log


def test_mapped_tasks_get_their_element(world: World, warm: bool) -> None:
    """Each map index renders its own argument."""
    assert [run(world, warm, "doubles", map_index=index).relay.pushed() for index in (0, 1)] == [20, 40]


def test_branches_and_short_circuits_skip_downstream(world: World, warm: bool) -> None:
    """Both tell the API which tasks to skip, and succeed."""
    for task_id, skipped in (("branches", [["left", -1]]), ("short", ["after_short"])):
        done = run(world, warm, task_id)
        assert done.relay.states == ["success"]
        assert done.relay.bodies("/skip-downstream") == [{"tasks": skipped}]


def test_setup_and_teardown_run(world: World, warm: bool) -> None:
    """They are tasks as any other on the worker."""
    assert run(world, warm, "sets_up").relay.states == ["success"]
    assert run(world, warm, "tears_down").relay.states == ["success"]


def test_leaving_by_sys_exit_fails(world: World, warm: bool) -> None:
    """SystemExit is a failure."""
    assert run(world, warm, "leaves_by_exit").relay.states == ["failed"]


def test_run_as_user_is_refused_with_a_reason(world: World, warm: bool) -> None:
    """The task fails, and its log says what to do."""
    done = run(world, warm, "as_root")
    assert done.relay.states == ["failed"]
    assert "run_as_user is not supported" in done.log


def test_an_unknown_task_fails_with_a_reason(world: World, warm: bool) -> None:
    """The file parses, but has no such task."""
    done = run(world, warm, "absent")
    assert done.relay.states == ["failed"]
    assert "Task not found in DAG" in done.log


def test_a_file_that_does_not_import_fails_with_its_error_in_the_log(world: World, warm: bool) -> None:
    """The import error's traceback is in the task's log."""
    root = world.write("from airflow.sdk import DAG\nraise RuntimeError('broken at import')\n")
    done = world.do(world.run(root, "any", warm=warm))
    assert done.relay.states == ["failed"]
    assert "broken at import" in done.log
    assert "DAG not found" in done.log


def test_a_task_sees_nothing_of_agent_zygote_or_supervisor(world: World, warm: bool) -> None:
    """No settings or secrets in its environment, no foreign descriptors, its own session, default signals."""
    seen = run(world, warm, "says_what_it_sees").relay.pushed()
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


def test_the_start_and_heartbeat_calls_are_not_made(world: World, warm: bool) -> None:
    """The grant is the start, and the lease the heartbeat."""
    done = run(world, warm, "bash")
    assert not [call.path for call in done.relay.calls if call.path.endswith(("/run", "/heartbeat"))]


def test_dag_run_times_reach_the_context(world: World) -> None:
    """The run context of the grant is the task's."""
    root = world.write(
        "from airflow.sdk import DAG, task, get_current_context\n"
        "with DAG('d'):\n    @task\n    def t():\n        return get_current_context()['ts']\n    t()\n"
    )
    assert world.do(world.run(root, "t")).relay.pushed().startswith(NOW[:19])
