"""Every Task SDK feature, once for each executor: ``<name>__edge`` runs at the edge, ``<name>__local`` on LocalExecutor.

`tests/acceptance/test_features.py` runs both and compares task states, tries and XComs. A DAG here must be
deterministic: no times, host names or process ids in what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.exceptions import AirflowFailException, AirflowSkipException
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.latest_only import LatestOnlyOperator
from airflow.providers.standard.operators.python import PythonOperator, ShortCircuitOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensorAsync
from airflow.sdk import (
    DAG,
    Asset,
    AssetAlias,
    BaseOperator,
    Connection,
    Metadata,
    Param,
    Variable,
    chain,
    get_current_context,
    setup,
    task,
    task_group,
    teardown,
)

Build = Callable[[str], None]
DAGS: dict[str, Build] = {}
EXECUTORS = {"edge": None, "local": "LocalExecutor"}
# Airflow 3.0.4 fails a task that is scheduled again before its executor has reported the segment before. At the
# edge that cannot happen; LocalExecutor is given the time.
AGAIN_SECONDS = 5
FAST = {"retries": 0, "retry_delay": timedelta(seconds=1)}


def feature(build: Build) -> Build:
    """Register `build`: called inside the DAG it fills, with the variant's name."""
    DAGS[build.__name__] = build
    return build


@feature
def xcom(variant: str) -> None:
    """Return values, named keys, several at once, multiple_outputs, and what no one pushed."""

    @task
    def push() -> dict[str, Any]:
        get_current_context()["ti"].xcom_push(key="named", value=[1, 2.5, None, "drei", {"vier": 4}])
        return {"text": "ä" * 100, "nested": {"list": [1, 2, 3]}}

    @task(multiple_outputs=True)
    def several() -> dict[str, int]:
        return {"one": 1, "two": 2}

    @task
    def pull(whole: dict[str, Any], one: int) -> list[Any]:
        ti = get_current_context()["ti"]
        named = ti.xcom_pull(task_ids="push", key="named")
        nothing = ti.xcom_pull(task_ids="push", key="never", default="default")
        both = ti.xcom_pull(task_ids=["push", "several"], key="return_value")
        return [whole, one, named, nothing, both]

    pull(push(), several()["one"])


@feature
def large_xcom(variant: str) -> None:
    """A value of a megabyte arrives whole."""

    @task
    def push() -> list[str]:
        return ["x" * 1000] * 1000

    @task
    def pull(value: list[str]) -> int:
        return sum(map(len, value))

    pull(push())


@feature
def variables(variant: str) -> None:
    """Get, default, set, JSON, delete."""
    key = f"suite_{variant}"

    @task
    def write() -> None:
        Variable.set(key, {"a": 1}, serialize_json=True)

    @task
    def read() -> list[Any]:
        return [Variable.get(key, deserialize_json=True), Variable.get("suite_absent", default="fallback")]

    @task
    def delete() -> str:
        Variable.delete(key)
        return Variable.get(key, default="gone")

    @task
    def absent() -> None:
        Variable.get("suite_absent")

    chain(write(), read(), delete(), absent())


@feature
def connections(variant: str) -> None:
    """A connection with its password and extras; one that is not there fails the task."""

    @task
    def read() -> list[Any]:
        connection = Connection.get("suite_connection")
        return [connection.host, connection.login, len(connection.password or ""), connection.extra_dejson]

    @task
    def absent() -> None:
        Connection.get("suite_absent")

    read() >> absent()


@feature
def templates(variant: str) -> None:
    """Rendered fields, params and the run's conf."""
    BashOperator(
        task_id="bash",
        bash_command="echo {{ params.word }}-{{ dag_run.conf.get('n', 7) }}-{{ task.task_id }}-{{ ti.try_number }}",
    )

    @task
    def context() -> list[Any]:
        found = get_current_context()
        return [
            found["params"]["word"],
            found["run_id"] is not None,
            found["ti"].map_index,
            found["ti"].try_number,
        ]

    context()


@feature
def mapped(variant: str) -> None:
    """Expansion over literals, over XComs, zipped arguments, and a mapped group; lazily read."""

    @task
    def numbers() -> list[int]:
        return [1, 2, 3]

    @task(map_index_template="{{ n }}-th")
    def square(n: int) -> int:
        get_current_context()["n"] = n
        return n * n

    @task
    def add(values: Any, offset: int) -> list[Any]:
        return [sum(values) + offset, values[0], list(values[1:]), len(values)]

    @task_group
    def group(n: int) -> Any:
        @task
        def inner(n: int) -> int:
            return -n

        @task
        def outer(n: int) -> int:
            return n * 10

        return outer(inner(n))

    squares = square.expand(n=numbers())
    add.partial(offset=5).expand(values=[[1, 2], [3, 4]])
    add.override(task_id="total")(squares, 0)
    add.override(task_id="group_total")(group.expand(n=[1, 2, 3]), 0)


@feature
def mapped_nothing(variant: str) -> None:
    """Expansion over nothing is skipped, and so is what follows."""

    @task
    def none() -> list[int]:
        return []

    @task
    def each(n: int) -> int:
        return n

    @task
    def after(values: Any) -> int:
        return len(values)

    after(each.expand(n=none()))


@feature
def branching(variant: str) -> None:
    """One branch runs, the other is skipped, the join runs."""

    @task.branch
    def choose() -> str:
        return "left"

    join = EmptyOperator(task_id="join", trigger_rule="none_failed_min_one_success")
    choose() >> [EmptyOperator(task_id="left"), EmptyOperator(task_id="right")] >> join


@feature
def branching_with_code(variant: str) -> None:
    """The same with tasks that run code after the branch."""

    @task.branch
    def choose() -> list[str]:
        return ["left", "middle"]

    @task
    def side() -> str:
        return "ran"

    chosen = choose()
    for name in ("left", "middle", "right"):
        chosen >> side.override(task_id=name)()


@feature
def short_circuit(variant: str) -> None:
    """False skips what follows; True does not."""
    for name, answer in (("stop", False), ("go", True)):
        gate = ShortCircuitOperator(task_id=name, python_callable=lambda answer=answer: answer)
        gate >> PythonOperator(task_id=f"after_{name}", python_callable=lambda: "ran")


@feature
def skip_and_fail(variant: str) -> None:
    """Skips, failures, failures that must not be retried, and the trigger rules over them."""

    @task
    def skipped() -> None:
        raise AirflowSkipException("not today")

    @task
    def broken() -> None:
        raise ValueError("broken on purpose")

    @task(retries=3)
    def final() -> None:
        raise AirflowFailException("no retry")

    @task(trigger_rule="all_done")
    def always() -> str:
        return "always"

    @task(trigger_rule="one_failed")
    def one_failed() -> str:
        return "one failed"

    @task
    def never() -> None: ...

    @task
    def skipped_too() -> None: ...

    left_out, failed = skipped(), [broken(), final()]
    ends = [left_out, *failed]
    ends >> always()
    ends >> one_failed()
    # Below both, what comes first would decide between skipped and upstream_failed, under any executor.
    failed >> never()
    left_out >> skipped_too()


@feature
def retries(variant: str) -> None:
    """Fails twice, succeeds at the third try."""

    @task(retries=2, retry_delay=timedelta(seconds=1))
    def third_time() -> int:
        number = get_current_context()["ti"].try_number
        if number < 3:
            raise RuntimeError(f"try {number}")
        return number

    third_time()


@feature
def retries_run_out(variant: str) -> None:
    """Fails at every try."""

    @task(retries=1, retry_delay=timedelta(seconds=1))
    def never() -> None:
        raise RuntimeError("again")

    never()


@feature
def execution_timeout(variant: str) -> None:
    """A task that takes too long is stopped and fails."""

    @task(execution_timeout=timedelta(seconds=2))
    def slow() -> None:
        import time

        time.sleep(120)

    slow()


@feature
def exits(variant: str) -> None:
    """sys.exit, a killed process, and a shell command's exit codes."""

    @task
    def exits_1() -> None:
        import sys

        sys.exit(1)

    @task
    def killed() -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    exits_1()
    killed()
    BashOperator(task_id="bash_fails", bash_command="exit 3")
    BashOperator(task_id="bash_skips", bash_command="exit 99")


@feature
def setup_teardown(variant: str) -> None:
    """The teardown runs though the work failed, and the run fails with it."""

    @setup
    @task
    def make() -> str:
        return "made"

    @task
    def work(thing: str) -> None:
        raise ValueError(thing)

    @teardown
    @task
    def clean(thing: str) -> str:
        return f"cleaned {thing}"

    made = make()
    done = clean(made)
    made >> work(made) >> done


@feature
def callbacks(variant: str) -> None:
    """Success, failure, retry and skip callbacks run, and what they do counts."""

    def note(name: str) -> Callable[[Any], None]:
        def callback(context: Any) -> None:
            Variable.set(f"suite_{variant}_{name}", f"{name} at try {context['ti'].try_number}")

        return callback

    def passes() -> str:
        return "passed"

    def fails() -> None:
        raise ValueError("on purpose")

    def skips() -> None:
        raise AirflowSkipException

    names = ("success", "failure", "retry", "skipped")
    every: dict[str, Any] = {f"on_{name}_callback": note(name) for name in names}
    tasks = [
        PythonOperator(task_id="passes", python_callable=passes, **every),
        PythonOperator(
            task_id="fails", python_callable=fails, retries=1, retry_delay=timedelta(seconds=1), **every
        ),
        PythonOperator(task_id="skips", python_callable=skips, **every),
    ]

    @task(trigger_rule="all_done")
    def collect() -> list[str]:
        return [Variable.get(f"suite_{variant}_{name}", default="") for name in names]

    tasks >> collect()


@feature
def reschedule(variant: str) -> None:
    """A sensor that gives its slot back between pokes, and one that pokes."""
    counter = f"suite_{variant}_pokes"

    def third_poke() -> bool:
        pokes = int(Variable.get(counter, default="0")) + 1
        Variable.set(counter, str(pokes))
        return pokes >= 3

    rescheduled = PythonSensor(
        task_id="rescheduled",
        python_callable=third_poke,
        mode="reschedule",
        poke_interval=AGAIN_SECONDS,
        timeout=120,
    )

    @task.sensor(poke_interval=0.5, timeout=30)
    def poked() -> bool:
        return True

    @task
    def count() -> str:
        return Variable.get(counter)

    @task
    def forget() -> None:
        Variable.delete(counter)

    forget() >> rescheduled >> poked() >> count()


@feature
def sensor_timeout(variant: str) -> None:
    """A sensor whose time is up fails, or is skipped where it is soft."""
    for soft in (False, True):
        PythonSensor(
            task_id=f"soft_{soft}".lower(),
            python_callable=lambda: False,
            poke_interval=0.2,
            timeout=1,
            soft_fail=soft,
        )


class Deferring(BaseOperator):
    """Defers, resumes with the event, defers again, and returns what it saw."""

    def execute(self, context: Any) -> None:
        """First segment."""
        from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

        context["ti"].xcom_push(key="before", value="kept across the deferral")
        self.defer(
            trigger=TimeDeltaTrigger(timedelta(seconds=AGAIN_SECONDS)),
            method_name="again",
            kwargs={"carried": [1, 2]},
        )

    def again(self, context: Any, event: Any = None, carried: Any = None) -> None:
        """Second segment."""
        from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

        self.defer(
            trigger=TimeDeltaTrigger(timedelta(seconds=AGAIN_SECONDS)),
            method_name="done",
            kwargs={"carried": [*carried, 3]},
        )

    def done(self, context: Any, event: Any = None, carried: Any = None) -> list[Any]:
        """Third segment."""
        return [carried, context["ti"].xcom_pull(task_ids=self.task_id, key="before")]


@feature
def deferral(variant: str) -> None:
    """Deferred twice; a deferrable sensor; and a deferral that times out."""
    Deferring(task_id="twice")
    TimeDeltaSensorAsync(task_id="sensor", delta=timedelta(seconds=AGAIN_SECONDS))

    class TooLong(BaseOperator):
        def execute(self, context: Any) -> None:
            from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

            self.defer(
                trigger=TimeDeltaTrigger(timedelta(seconds=300)),
                method_name="done",
                timeout=timedelta(seconds=2),
            )

        def done(self, context: Any, event: Any = None) -> str:
            return "not reached"

    TooLong(task_id="too_long")


@feature
def trigger_run(variant: str) -> None:
    """Another DAG is triggered, waited for, and its failure seen."""
    children = [
        TriggerDagRunOperator(
            task_id=f"child_{child}",
            trigger_dag_id=f"child_{child}__{variant}",
            trigger_run_id=f"{{{{ run_id }}}}__{child}",
            conf={"from": "parent"},
            wait_for_completion=True,
            poke_interval=1,
        )
        for child in ("succeeds", "fails")
    ]
    the_same_again = TriggerDagRunOperator(
        task_id="the_same_again",
        trigger_dag_id=f"child_succeeds__{variant}",
        trigger_run_id="{{ run_id }}__succeeds",
        trigger_rule="all_done",
    )
    children >> the_same_again


@feature
def child_succeeds(variant: str) -> None:
    """Child of `trigger_run` that succeeds."""

    @task
    def echo() -> Any:
        return get_current_context()["dag_run"].conf

    echo()


@feature
def child_fails(variant: str) -> None:
    """Child of `trigger_run` that fails."""

    @task
    def fail() -> None:
        raise ValueError("child")

    fail()


@feature
def assets(variant: str) -> None:
    """Outlets with extras, by yield, by context and through an alias; read back as inlet events."""
    produced = Asset(name=f"suite_{variant}", uri=f"s3://suite/{variant}")
    alias = AssetAlias(f"suite_alias_{variant}")

    @task(outlets=[produced])
    def produce() -> Any:
        yield Metadata(produced, extra={"rows": 42})

    @task(outlets=[alias])
    def through_alias() -> None:
        get_current_context()["outlet_events"][alias].add(
            Asset(name=f"suite_{variant}_aliased", uri=f"s3://suite/{variant}/aliased"), extra={"by": "alias"}
        )

    @task(inlets=[produced])
    def consume() -> Any:
        return get_current_context()["inlet_events"][produced][-1].extra

    produce() >> through_alias() >> consume()


@feature
def runtime_queries(variant: str) -> None:
    """A task's queries to the control plane: its siblings' states, its runs, the previous run."""

    @task
    def first() -> str:
        return "first"

    @task
    def ask() -> list[Any]:
        context = get_current_context()
        ti = context["ti"]
        states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id], task_ids=["first"])
        return [
            list(states.values()),
            ti.get_dr_count(dag_id=ti.dag_id, run_ids=[ti.run_id]),
            ti.get_dagrun_state(dag_id=ti.dag_id, run_id=ti.run_id),
            context["prev_start_date_success"] is None,
        ]

    first() >> ask()


@feature
def groups_and_latest(variant: str) -> None:
    """Task groups, latest-only, pools and priorities."""

    @task_group
    def inner() -> None:
        @task(pool="default_pool", pool_slots=2, priority_weight=10)
        def heavy() -> str:
            return "heavy"

        @task(priority_weight=1)
        def light() -> str:
            return "light"

        heavy() >> light()

    LatestOnlyOperator(task_id="latest") >> inner()


@feature
def masked(variant: str) -> None:
    """A password that a task prints does not reach its log."""

    @task
    def prints() -> str:
        print("password is", Connection.get("suite_connection").password)
        return "printed"

    prints()


@feature
def subprocesses(variant: str) -> None:
    """Child processes, their output and their working directory."""
    BashOperator(task_id="pipes", bash_command="seq 3 | paste -sd+ | sed s/+/-/g", env={"LC_ALL": "C"})
    BashOperator(task_id="env", bash_command='echo "$GREETING"', env={"GREETING": "hallo"}, append_env=True)

    @task
    def spawns() -> str:
        import subprocess
        import sys

        return subprocess.check_output([sys.executable, "-c", "print(6 * 7)"], text=True)

    @task
    def forks() -> int:
        import os

        pid = os.fork()
        if pid == 0:
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    spawns()
    forks()


for _variant, _executor in EXECUTORS.items():
    for _name, _build in DAGS.items():
        with DAG(
            dag_id=f"{_name}__{_variant}",
            schedule=None,
            doc_md=_build.__doc__,
            params={"word": Param("wort", type="string")},
            default_args={**FAST, "executor": _executor},
            tags=["suite", _variant],
        ) as _dag:
            _build(_variant)
        globals()[_dag.dag_id] = _dag
