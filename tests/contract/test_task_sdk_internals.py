"""What `airbridge.edge_worker._airflow` and the runner lean on in the Task SDK and Airflow 3.0.4.

A failure here after an upgrade says which of the runner's assumptions to look at again.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import attrs
import pytest
from airflow import settings
from airflow.dag_processing.bundles.base import BaseDagBundle
from airflow.models import dagbag
from airflow.sdk import Connection, get_parsing_context
from airflow.sdk.api.client import Client
from airflow.sdk.execution_time import comms, context, secrets_masker, supervisor, task_runner
from airflow.sdk.execution_time.supervisor import SERVER_TERMINATED, ActivitySubprocess
from airflow.sdk.log import configure_logging, mask_logs

from airbridge.edge_worker import _airflow
from airbridge.edge_worker._airflow.client import RelayClient
from airbridge.edge_worker.runner import hazards, home
from airbridge.edge_worker.runner.messages import Source


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


REWRITTEN = {
    task_runner.main: "e22b3fec81a2cd2e",
    task_runner.startup: "ddc01b5bbceef072",
    task_runner.parse: "4369ebf4cda03ce8",
    supervisor.WatchedSubprocess.start.__func__: "ca51ade15520dc97",  # type: ignore[attr-defined] # a class method's function
    ActivitySubprocess.start.__func__: "d2bd2b1d43826c6e",  # type: ignore[attr-defined] # as above
}
"""What the runner does in its own way, by the digest of the source it was written after."""


@pytest.mark.parametrize("function", REWRITTEN, ids=lambda function: function.__qualname__)
def test_what_the_runner_does_in_its_own_way_is_what_it_was(function: Callable[..., Any]) -> None:
    """`_airflow.running` and `_airflow.supervising.start_task` follow these; compare them anew if this fails."""
    source = inspect.getsource(function)
    assert sha256(source.encode()).hexdigest()[:16] == REWRITTEN[function]


def test_the_supervisor_has_the_places_that_are_overridden() -> None:
    """Names and parameters of the methods that `SupervisedTask` replaces or calls."""
    assert parameters(ActivitySubprocess._register_pipe_readers) == [
        "self",
        "stdout",
        "stderr",
        "requests",
        "logs",
    ]
    assert parameters(ActivitySubprocess._send_heartbeat_if_needed) == ["self"]
    assert parameters(ActivitySubprocess._upload_logs) == ["self"]
    assert parameters(ActivitySubprocess.kill) == ["self", "signal_to_send", "escalation_delay", "force"]
    assert {"id", "pid", "stdin", "process", "process_log", "client"} <= set(parameters(ActivitySubprocess))
    assert parameters(supervisor._fork_main) == [
        "requests",
        "child_stdout",
        "child_stderr",
        "log_fd",
        "target",
    ]


def test_the_supervisors_loop_heartbeats_after_every_event_while_the_task_lives() -> None:
    """That is where the order to stop is obeyed."""
    source = inspect.getsource(ActivitySubprocess._monitor_subprocess)
    assert "alive = self._service_subprocess(" in source
    assert source.index("if alive:") < source.index("self._send_heartbeat_if_needed()")
    assert "_last_successful_heartbeat" in source


def test_the_supervisor_calls_handler_and_closer_of_what_is_registered() -> None:
    """Relay, leash and zygote are registered as (handler, closer); a false answer unregisters."""
    source = inspect.getsource(ActivitySubprocess._service_subprocess)
    assert "socket_handler, on_close = key.data" in source
    assert "need_more = socket_handler(key.fileobj)" in source


def test_a_task_that_is_stopped_from_outside_reports_no_state() -> None:
    """`SERVER_TERMINATED` is a state that is sent directly, which here means not at all."""
    assert SERVER_TERMINATED in supervisor.STATES_SENT_DIRECTLY
    assert "STATES_SENT_DIRECTLY" in inspect.getsource(ActivitySubprocess.update_task_state_if_needed)


def test_the_child_configures_its_logs_through_the_function_that_is_replaced() -> None:
    """`_fork_main` looks it up by its global name and passes the descriptor."""
    assert "_configure_logs_over_json_channel(log_fd)" in inspect.getsource(supervisor._fork_main)
    assert "sending_to_supervisor=True" in inspect.getsource(supervisor._configure_logs_over_json_channel)
    assert {"enable_pretty_log", "output", "sending_to_supervisor"} <= set(parameters(configure_logging))


def test_the_child_runs_the_target_that_it_is_given() -> None:
    """And exits without cleaning up after the process it was forked from."""
    source = inspect.getsource(supervisor._fork_main)
    assert "target()" in source
    assert "os._exit" in source


def test_the_child_blocks_the_orm_through_the_function_that_is_replaced() -> None:
    """Before it runs its target, and by nothing but what stays done once it was done: module attributes, options, environment."""
    child = inspect.getsource(supervisor._fork_main)
    assert child.index("block_orm_access()") < child.index("target()")
    assert not inspect.signature(supervisor.block_orm_access).parameters


def test_the_comms_take_decoders_that_exist_already() -> None:
    """Otherwise each task would build them twice."""
    assert {"log", "body_decoder", "err_decoder", "socket"} <= {
        each.name for each in attrs.fields(comms.CommsDecoder)
    }


def test_variables_and_connections_at_import_go_through_what_is_watched() -> None:
    """Both look up the backends and the channel at the time of the call, by the names that a template replaces."""
    for function in (context._get_variable, context._get_connection):
        source = inspect.getsource(function)
        assert "from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded" in source
        assert "from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS" in source


def test_connections_are_fetched_by_the_function_that_is_replaced() -> None:
    """`Connection.get` and the template accessor look it up when they are called."""
    assert "from airflow.sdk.execution_time.context import _get_connection" in inspect.getsource(
        Connection.get
    )
    assert "return _get_connection(conn_id)" in inspect.getsource(context.ConnectionAccessor.get)


def test_what_masks_log_events_masks_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mask_logs` is a structlog processor that knows the secrets of its own process."""
    masker = secrets_masker.SecretsMasker()
    masker.add_mask("sesame-open")
    monkeypatch.setattr(secrets_masker, "_secrets_masker", lambda: masker)
    assert mask_logs(None, "info", {"event": "say sesame-open"}) == {"event": "say ***"}


def test_a_masker_can_be_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns and replacer are all that it knows: what it knew at first it knows again, and no more."""
    masker = secrets_masker.SecretsMasker()
    masker.add_mask("sesame-open")
    monkeypatch.setattr(secrets_masker, "_secrets_masker", lambda: masker)
    forget = _airflow.forgetting()
    masker.add_mask("hunter2-hunter2")
    assert masker.redact("sesame-open hunter2-hunter2") == "*** ***"
    forget()
    assert masker.redact("sesame-open hunter2-hunter2") == "*** hunter2-hunter2"


def test_the_parsing_context_is_read_from_the_environment_that_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`get_parsing_context` reads these two variables, and `os.environ` can change its class."""
    for number, name in enumerate(sorted(hazards.PARSING_CONTEXT)):
        monkeypatch.setenv(name, str(number))
    assert tuple(get_parsing_context()) == ("0", "1")
    assert type(os.environ) is os._Environ


def test_the_clients_retries_can_be_given_another_sleep() -> None:
    """tenacity's `Retrying` hangs on the method."""
    slept: list[float] = []
    retrying = Client.request.retry.copy(sleep=slept.append)
    assert retrying.sleep == slept.append
    assert parameters(Client.request)[0] == "self"


def test_the_relay_client_offers_what_the_supervisor_asks_for() -> None:
    """All groups of operations work on a client that has no httpx state."""
    client = RelayClient(None)  # type: ignore[arg-type] # never called
    for group in (
        "task_instances",
        "dag_runs",
        "connections",
        "variables",
        "xcoms",
        "assets",
        "asset_events",
    ):
        assert getattr(client, group).client is client


def test_dagbag_uses_signals_for_segmentation_faults_only() -> None:
    """So that the module it knows as `signal` can be replaced."""
    lines = [line.strip() for line in inspect.getsource(dagbag).splitlines() if "signal." in line]
    assert lines == ["signal.signal(signal.SIGSEGV, handler)"]


def test_the_orm_can_be_left_out() -> None:
    """`settings.initialize` looks at the variable that the zygote starts with."""
    (name,) = home.WITHOUT_ORM
    assert f'if not os.environ.get("{name}", None):' in inspect.getsource(settings.initialize)


def test_a_snapshot_is_a_bundle() -> None:
    """Name, version and path are what a task sees as `ti.bundle_instance`."""
    bundle = _airflow.SnapshotBundle(Source("dags", "sha256:1", "/bundles/1", "dag.py"))
    assert isinstance(bundle, BaseDagBundle)
    assert (bundle.name, bundle.version, str(bundle.path)) == ("dags", "sha256:1", "/bundles/1")
    assert bundle.get_current_version() == "sha256:1"
    assert bundle.is_initialized
    bundle.refresh()


def test_the_host_name_is_read_from_the_callable_in_the_configuration() -> None:
    """`_prepare` puts it into the task instance."""
    assert "ti.hostname = get_hostname()" in inspect.getsource(task_runner._prepare)
    assert _airflow.hostname() == ""


def test_numpy_seeds_itself_as_the_watch_expects() -> None:
    """A global generator that nobody has touched is told from a seeded and from a used one."""
    random = pytest.importorskip("numpy").random
    random.seed()
    assert not hazards._numpy_touched()
    random.random()
    assert hazards._numpy_touched()
    for seed in (7, [1, 2]):
        random.seed(seed)
        assert hazards._numpy_touched()
    random.seed()
