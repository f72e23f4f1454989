"""Assets that tasks declare, read from the DAGs that Airflow has serialised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event
from tests.support.airflow_home import Metadata
from tests.support.scheduler import Hand, Scheduler, flat_dag, start_run, store_dag

from airbridge.executor._airflow import DeclaredAssets


def asset(uri: str) -> Any:
    from airflow.sdk import Asset

    return Asset(uri)


def test_a_task_runs_near_its_assets(
    metadata: Metadata, hand: Hand, new_scheduler: Callable[[], Scheduler]
) -> None:
    """A task that names no place goes to the region of its inlet, and its timeline says why."""
    dag = flat_dag("declared", inlets=[asset("s3://eu-data/orders")])
    store_dag(metadata, dag)
    start_run(metadata, dag)
    new_scheduler().loop(2)
    [row] = hand.rows()
    assert row.region == "eu-west-1"
    assert row.placement["why"] == "near s3://eu-data/orders, which it declares as assets"


def test_inlets_then_outlets(metadata: Metadata) -> None:
    """Every asset once, what is read first; names and aliases have no address."""
    from airflow.sdk import Asset, AssetAlias

    kind = {
        "inlets": [asset("s3://a/in"), Asset.ref(uri="s3://b/ref"), Asset.ref(name="n"), AssetAlias("x")],
        "outlets": [asset("s3://c/out"), asset("s3://a/in")],
    }
    store_dag(metadata, flat_dag("sides", **kind))
    with metadata.session() as session:
        found = DeclaredAssets().reader(session)("sides", "t0")
    assert found == ("s3://a/in", "s3://b/ref", "s3://c/out")


def test_mapped_tasks_declare_too(metadata: Metadata) -> None:
    """Of a mapped task the assets are among the arguments that its runs share."""
    from airflow.sdk import DAG, task

    with DAG("mapped") as dag:

        @task(outlets=[asset("s3://a/out")])
        def each(x: int) -> None: ...

        each.expand(x=[1, 2])
    dag.relative_fileloc = "mapped.py"
    store_dag(metadata, dag)
    with metadata.session() as session:
        assert DeclaredAssets().reader(session)("mapped", "each") == ("s3://a/out",)


def test_a_dag_is_read_once_for_each_version(metadata: Metadata) -> None:
    """Later batches ask for the version alone; a changed DAG is read again; the least used ones are forgotten."""
    store_dag(metadata, flat_dag("one", inlets=[asset("s3://a/x")]))
    store_dag(metadata, flat_dag("two", inlets=[asset("s3://a/y")]))
    known = DeclaredAssets(kept=1)
    statements: list[str] = []
    with metadata.session() as session:
        event.listen(session.get_bind(), "before_cursor_execute", lambda *a: statements.append(str(a[2])))
        find = known.reader(session)
        assert [find("one", "t0") for _ in range(3)] == 3 * [("s3://a/x",)]
        first = len(statements)
        assert known.reader(session)("one", "t0") == ("s3://a/x",)
        assert len(statements) - first == 1
        assert known.reader(session)("two", "t0") == ("s3://a/y",)
        assert known.reader(session)("missing", "t0") == ()
        assert list(known._by_dag) == ["two"]
    store_dag(metadata, flat_dag("two", inlets=[asset("s3://a/z")]))
    with metadata.session() as session:
        assert known.reader(session)("two", "t0") == ("s3://a/z",)


class Table:
    """A lineage object that is no asset, as those of OpenLineage: Airflow serialises its text."""

    def __str__(self) -> str:
        return "orders"


@pytest.mark.parametrize(
    ("inlets", "found"),
    [
        pytest.param(["orders"], (), id="text"),
        pytest.param([Table(), {"uri": "s3://a/dict"}, 3, None], (), id="objects"),
        pytest.param([("x", "y")], (), id="tuple"),
    ],
)
def test_inlets_that_are_no_assets(metadata: Metadata, inlets: Any, found: tuple[str, ...]) -> None:
    """Inlets may be anything; what is no asset has no address, and the assets beside it count."""
    store_dag(metadata, flat_dag("odd", inlets=[*inlets, asset("s3://a/in")]))
    with metadata.session() as session:
        assert DeclaredAssets().reader(session)("odd", "t0") == (*found, "s3://a/in")


def test_mapped_task_with_one_asset(metadata: Metadata) -> None:
    """Shared arguments are kept as they are written: an asset that is in no list counts."""
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.sdk import DAG

    with DAG("single") as dag:
        BashOperator.partial(task_id="each", inlets=asset("s3://a/in")).expand(bash_command=["a", "b"])
    dag.relative_fileloc = "single.py"
    store_dag(metadata, dag)
    with metadata.session() as session:
        assert DeclaredAssets().reader(session)("single", "each") == ("s3://a/in",)
