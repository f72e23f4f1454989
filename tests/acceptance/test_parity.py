"""A task sees the same configuration under LocalExecutor in the control plane and on a worker, but for what the rule names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.acceptance.operator_settings import SECRETS
from tests.support.platform import LocalPlatform, Run

DAG_FILE = Path(__file__).parent / "dags" / "parity.py"
ESCAPES = Path(__file__).parent / "dags" / "escapes.py"
MODELS = "import attr\n\n\n@attr.define\nclass Item:\n    name: str\n"
# Options of the rule that differ by design; the reference page says why.
DIFFERENT = {"core.sensitive_var_conn_names", "smtp.smtp_password", "acme.api_token"}


@pytest.fixture(scope="module")
def runs(platform: LocalPlatform) -> tuple[LocalPlatform, Run, Run]:
    """Both runs, side by side on one platform."""
    platform.add_dag("acme_models", MODELS)
    platform.add_dag_file(DAG_FILE)
    dags = ("parity__edge", "parity__local")
    ids = [platform.trigger(dag_id) for dag_id in dags]
    edge, local = (platform.finish(*each) for each in zip(dags, ids, strict=True))
    return platform, edge, local


def test_options_are_equal(runs: tuple[LocalPlatform, Run, Run]) -> None:
    """All that concern tasks, set or not, and what a DAG file reads at import; no secret arrives."""
    platform, edge, local = runs
    there, here = (platform.xcom(run, "options") for run in (edge, local))
    different = {name for name in there.keys() | here.keys() if there.get(name) != here.get(name)}
    assert different <= DIFFERENT
    assert there["acme.lake"] == there["at_import"] == "s3://100%/lake"
    assert there["smtp.smtp_host"] == "mail.example"
    assert "iban" in there["core.sensitive_var_conn_names"]
    assert not [secret for secret in SECRETS if secret in json.dumps(there)]


def test_environment_has_what_clients_need(runs: tuple[LocalPlatform, Run, Run]) -> None:
    """AWS's region and endpoint, the time zone and the folder of DAGs; variables given to tasks take none of it away."""
    platform, edge, local = runs
    there, here = (platform.xcom(run, "environment") for run in (edge, local))
    assert there["timezone"] == here["timezone"] == "Europe/Berlin"
    assert there["sqs_region"] == here["sqs_region"] == "us-east-1"
    assert there["values"]["AWS_ENDPOINT_URL"] == platform.state.aws_url
    assert there["values"]["AIRFLOW__API__BASE_URL"] == platform.state.ui_url
    for name in ("AWS_DEFAULT_REGION", "TZ", "LANG", "PATH"):
        assert there["values"][name] == here["values"][name]
    assert (there["colour"], here["colour"]) == ("red", "absent")
    assert there["dags_folder"]
    assert not [name for name in there["names"] if name.startswith(("AIRBRIDGE_", "AIRFLOW_CONN_"))]
    assert "AIRFLOW__CORE__FERNET_KEY" not in there["names"]
    assert edge.task("lists_bucket")["state"] == "success"


def test_classes_come_back_under_both(runs: tuple[LocalPlatform, Run, Run]) -> None:
    """Those of a module beside the DAG file, and those of the file itself."""
    platform, *both = runs
    assert [platform.xcom(run, "pulls") for run in both] == [["Item", "x"]] * 2
    assert [platform.xcom(run, "pulls_own") for run in both] == [["Order", 7]] * 2


def test_what_is_not_passed_is_named(runs: tuple[LocalPlatform, Run, Run]) -> None:
    """In the gateway's and the worker's output, by name and never by value."""
    platform, _edge, _local = runs
    gateway, worker = platform.log_text("gateway"), platform.log_text("worker-us-east-1-default-1")
    assert "acme.api_token" in gateway
    assert "smtp.smtp_password" in gateway
    assert "AIRFLOW_CONN_PARITY" in worker
    assert "AIRFLOW__CORE__FERNET_KEY" in worker
    assert "hush" not in gateway + worker


@pytest.mark.slow("make test SLOW=1, every night")
def test_escaped_values_arrive_or_fail(runs: tuple[LocalPlatform, Run, Run]) -> None:
    """A value arrives whole, or the task that pushes it fails with the limit in its log: never success without the value."""
    platform, *_ = runs
    platform.add_dag_file(ESCAPES)
    ids = [platform.trigger(dag_id) for dag_id in ("escapes__edge", "escapes__local")]
    edge, local = (
        platform.finish(*each) for each in zip(("escapes__edge", "escapes__local"), ids, strict=True)
    )
    sizes = {"quotes": 20_000_000, "umlauts": 10_500_000, "letters": 3_000_000}
    for name, size in sizes.items():
        assert platform.xcom(local, f"pull_{name}") == size
        pushed = edge.task(f"push_{name}")["state"]
        arrived = platform.xcom(edge, f"pull_{name}")
        assert (pushed, arrived) in {("success", size), ("failed", -1)}
        if pushed == "failed":
            log = platform.task_log(edge, f"push_{name}")
            assert re.search(r"a value of \d+ characters of JSON is refused; allowed: at most \d+", log)
    assert platform.xcom(edge, "pull_letters") == sizes["letters"]
