"""The workloads of the chaos suite. What a task does is in its run's conf; what its code really did goes to a file.

conf: ``{"effects": FILE, "plan": {task_id: {"does": ..., "seconds": ..., "fails": n}}, "until": epoch seconds}``, and
``"lacks"`` with the promise that a mutant takes out of the tasks' processes (`tests.chaos.mutations`).
A task that `fails` n is one whose code raises in its first n tries. Every line of the effects file is one JSON object.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.exceptions import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
    DagRunTriggerException,
    TaskDeferred,
)
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, Variable, get_current_context, task
from airflow.sdk.bases.operator import BaseOperator
from airflow.utils import timezone
from chaos_triggers import FiresAfter

from airbridge.core import near

WIDTH = 16
LENGTH = 5
WAITING = 4
STORED_MEMBERS = 64
HASTY_LOST_AFTER = 5.0
OFTEN = {"retries": 9, "retry_delay": timedelta(seconds=0.2)}
HASTY = near("region:us-east-1", lost_after=HASTY_LOST_AFTER)


class DeliberateError(Exception):
    """Raised by a task that is planned to fail."""


def plan_of(context: Any) -> dict[str, Any]:
    """Return this task's part of the plan."""
    found: dict[str, Any] = context["dag_run"].conf["plan"].get(context["ti"].task_id, {})
    return found


def note(context: Any, what: str, outcome: str | None = None) -> None:
    """Append a line to the effects file, on the disk before anything else happens."""
    ti = context["ti"]
    line = {
        "ti_id": str(ti.id),
        "dag_id": ti.dag_id,
        "run_id": ti.run_id,
        "task_id": ti.task_id,
        "map_index": ti.map_index,
        "try_number": ti.try_number,
        "what": what,
        "outcome": outcome,
        "at": time.time(),
    }
    # One write with O_APPEND: lines of concurrent tasks do not mix, and a kill leaves a whole line or none.
    handle = os.open(context["dag_run"].conf["effects"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, json.dumps(line).encode() + b"\n")
    finally:
        os.close(handle)
    print(f"chaos {what} {outcome} {ti.id}")


def value_of(run_id: str, task_id: str, upstream: str = "") -> str:
    """Return a task's return value: a function of its identity and its input."""
    return hashlib.sha256(f"{run_id}/{task_id}/{upstream}".encode()).hexdigest()


def fail_if_planned(context: Any, plan: dict[str, Any]) -> None:
    """Raise in the first tries, if the plan has failures for them."""
    if context["ti"].try_number <= plan.get("fails", 0):
        raise DeliberateError(f"try {context['ti'].try_number}")


def _outlive_sigterm(context: Any, seconds: float) -> None:
    """Have the process go on for `seconds` after it was told to end."""

    def end_later(*_: Any) -> None:
        time.sleep(seconds)
        note(context, "end", "cancelled")
        os._exit(1)

    signal.signal(signal.SIGTERM, end_later)


def acts(context: Any, work: Callable[[], Any]) -> Any:
    """Wrap `work` in the plan's delays and failures; record how the code began and how it ended."""
    plan = plan_of(context)
    note(context, "start")
    if plan.get("stubborn"):
        _outlive_sigterm(context, plan["stubborn"])
    try:
        time.sleep(plan.get("seconds", 0.0) / 2)
        fail_if_planned(context, plan)
        context["ti"].xcom_push(key=f"by_try_{context['ti'].try_number}", value=str(context["ti"].id))
        made = work()
        time.sleep(plan.get("seconds", 0.0) / 2)
    except AirflowSkipException:
        note(context, "end", "skipped")
        raise
    except AirflowFailException:
        note(context, "end", "failed")
        raise
    except AirflowRescheduleException:
        note(context, "end", "up_for_reschedule")
        raise
    except TaskDeferred:
        note(context, "end", "deferred")
        raise
    except DagRunTriggerException:
        note(context, "end", "success")  # the operator's request to its supervisor to start the run
        raise
    except DeliberateError:
        note(context, "end", "up_for_retry")
        raise
    except BaseException as error:
        note(context, "end", f"error: {error!r}"[:300])
        raise
    note(context, "end", "success")
    return made


@task(**OFTEN)
def one() -> str:
    """Succeed, skip, fail, write a variable, or push much, as planned."""
    context = get_current_context()
    ti, plan = context["ti"], plan_of(context)

    def work() -> str:
        does = plan.get("does", "succeed")
        if does == "skip":
            raise AirflowSkipException
        if does == "fail":
            raise AirflowFailException
        if does == "variable":
            Variable.set(f"{ti.run_id}--{ti.task_id}", f"by try {ti.try_number}")
        if does == "push":
            for number in range(plan["pushes"]):
                ti.xcom_push(key=f"many_{number}", value=f"{number}." * 200)
        return value_of(ti.run_id, ti.task_id)

    made: str = acts(context, work)
    return made


@task(**OFTEN)
def link(upstream: str | None) -> str:
    """One of a chain: what it returns depends on what it was given."""
    context = get_current_context()
    ti = context["ti"]
    made: str = acts(context, lambda: value_of(ti.run_id, ti.task_id, upstream or ""))
    return made


class Rescheduled(BaseOperator):
    """Is rescheduled until its run's time has come."""

    def execute(self, context: Any) -> str:
        def work() -> str:
            if time.time() < context["dag_run"].conf["until"]:
                raise AirflowRescheduleException(timezone.utcnow() + timedelta(seconds=1))
            return value_of(context["ti"].run_id, self.task_id)

        made: str = acts(context, work)
        return made


class Deferred(BaseOperator):
    """Is deferred once, and goes on when its trigger fires."""

    def execute(self, context: Any) -> None:
        def work() -> None:
            self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="resume")

        acts(context, work)

    def resume(self, context: Any, event: Any = None) -> str:
        made: str = acts(context, lambda: value_of(context["ti"].run_id, self.task_id))
        return made


class Waits(BaseOperator):
    """Is deferred on a trigger of the bundle's own, which fires `waits` seconds after it began."""

    def execute(self, context: Any) -> None:
        conf, ti_id = context["dag_run"].conf, str(context["ti"].id)
        seconds = plan_of(context).get("waits", 2.0)

        def work() -> None:
            trigger = FiresAfter(seconds, ti_id, f"{conf['effects']}.fires")
            self.defer(trigger=trigger, method_name="resume")

        acts(context, work)

    def resume(self, context: Any, event: Any = None) -> str:
        ti = context["ti"]

        def work() -> str:
            if event != str(ti.id):
                raise ValueError(f"{ti.id} was resumed with the event of {event}")
            return value_of(ti.run_id, self.task_id)

        made: str = acts(context, work)
        return made


def publish_references_first() -> None:
    """Have this process publish the reference to an XCom before its object is stored."""
    from airbridge.edge_worker._airflow import xcom_backend

    store = xcom_backend._store

    def early(file: Any, size: int, digest: str, *more: Any) -> Any:
        transfer = xcom_backend._ask(xcom_backend.StoreXCom(size=size, digest=digest))
        copy = io.BytesIO(file.read())
        later = threading.Timer(60.0, store, (copy, size, digest, *more))
        later.daemon = True
        later.start()
        name = xcom_backend.xcoms.ObjectName.parse(transfer.object)
        return xcom_backend.StoredXCom(transfer.region, name, size, *more)

    xcom_backend._store = early


@task(**OFTEN)
def store() -> list[str]:
    """Return a value that is stored in the region's bucket."""
    context = get_current_context()
    ti = context["ti"]
    if context["dag_run"].conf.get("lacks") == "objects":
        publish_references_first()
    made: list[str] = acts(context, lambda: members(ti.run_id, ti.task_id))
    return made


@task(**OFTEN)
def load(value: list[str]) -> str:
    """Return what depends on every byte of a stored value."""
    context = get_current_context()
    ti = context["ti"]
    made: str = acts(context, lambda: value_of(ti.run_id, ti.task_id, "".join(value)))
    return made


def members(run_id: str, task_id: str) -> list[str]:
    """Return the value of `store`, too large to travel."""
    return [value_of(run_id, task_id, str(number)) for number in range(STORED_MEMBERS)]


class Calls(TriggerDagRunOperator):
    """Starts a run of another DAG under an id that only this attempt uses."""

    def execute(self, context: Any) -> None:
        self.trigger_run_id = f"{context['ti'].run_id}-{self.task_id}-{context['ti'].try_number}"
        self.conf = {**context["dag_run"].conf, "plan": {}}
        acts(context, lambda: TriggerDagRunOperator.execute(self, context))


with DAG("chaos-wide", schedule=None) as wide:
    for number in range(WIDTH):
        # Every fourth task has a `lost_after` of seconds, so that a cut fences some attempts of a run and spares the others.
        settings = {"executor_config": HASTY} if number % 4 == 3 else {"queue": "us-east-1"}
        one.override(task_id=f"t{number}", **settings)()

with DAG("chaos-hasty", schedule=None) as hasty:
    for number in range(WIDTH):
        one.override(task_id=f"t{number}", executor_config=HASTY)()

with DAG("chaos-chain", schedule=None, default_args={"queue": "us-east-1"}) as chain:
    before = None
    for number in range(LENGTH):
        before = link.override(task_id=f"c{number}")(before)

with DAG("chaos-mixed", schedule=None, default_args={"queue": "us-east-1", **OFTEN}) as mixed:
    waiting = Rescheduled(task_id="rescheduled")
    parked = Deferred(task_id="deferred")
    calls = [Calls(task_id=f"calls_{n}", trigger_dag_id="chaos-called") for n in range(3)]
    link.override(task_id="last")(one.override(task_id="first")()) << [waiting, parked]

    @task(**OFTEN)
    def mapped(number: int) -> str:
        context = get_current_context()
        ti = context["ti"]
        made: str = acts(context, lambda: value_of(ti.run_id, f"{ti.task_id}[{number}]"))
        return made

    mapped.expand(number=[0, 1, 2])

with DAG("chaos-waiting", schedule=None, default_args=OFTEN):
    for number in range(WAITING):
        # Half of them have a `lost_after` of seconds.
        where = {"executor_config": HASTY} if number % 2 else {"queue": "us-east-1"}
        Waits(task_id=f"w{number}", **where)

with DAG("chaos-stored", schedule=None, default_args={"queue": "us-east-1"}):
    load(store())

with DAG("chaos-called", schedule=None, default_args={"queue": "us-east-1"}):

    @task(**OFTEN)
    def called() -> str:
        """Succeed: the run is what `Calls` triggers."""
        context = get_current_context()
        made: str = acts(context, lambda: value_of(context["ti"].run_id, "called"))
        return made

    called()
