"""Internals of the Task SDK and Airflow 3.0.4 that `airbridge.edge_worker._airflow` and the runner depend on.

A failure here after an upgrade names the assumption of the runner that no longer holds.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import attrs
import pytest
from airflow import settings
from airflow.dag_processing.bundles.base import BaseDagBundle
from airflow.models import dagbag
from airflow.providers.standard.operators import python
from airflow.sdk import Connection, get_parsing_context
from airflow.sdk.api import client as sdk_client
from airflow.sdk.api.client import Client
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.execution_time import comms, context, secrets_masker, supervisor, task_runner
from airflow.sdk.execution_time.supervisor import SERVER_TERMINATED, ActivitySubprocess
from airflow.sdk.log import configure_logging, mask_logs

from airbridge.edge_worker import _airflow
from airbridge.edge_worker._airflow.client import ProxyClient
from airbridge.edge_worker.proxy.protocol import Reply
from airbridge.edge_worker.runner import airflow_home
from airbridge.edge_worker.runner.forking import fork_safety
from airbridge.edge_worker.runner.messages import Source


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


REWRITTEN = {
    task_runner.main: "e22b3fec81a2cd2e",
    task_runner.startup: "ddc01b5bbceef072",
    task_runner.parse: "4369ebf4cda03ce8",
    comms.CommsDecoder.send: "174672fdaa8172b3",
    comms.CommsDecoder._read_frame: "40ab369645ed1e8b",
    supervisor.WatchedSubprocess.start.__func__: "ca51ade15520dc97",  # type: ignore[attr-defined] # a class method's function
    ActivitySubprocess.start.__func__: "d2bd2b1d43826c6e",  # type: ignore[attr-defined] # as above
    # Whose handlers are put behind bounded readers, on workers and in the dag-processor.
    supervisor.WatchedSubprocess._register_pipe_readers: "c9f87dbcbeaa390f",
    supervisor.WatchedSubprocess._create_log_forwarder: "78907a3b4160c132",
    # The only other caller of `make_buffered_socket_reader` for a task's sockets.
    ActivitySubprocess._send_new_log_fd: "8a36a4deebc8fc6c",
    supervisor.make_buffered_socket_reader: "44165865c3de5d04",
    supervisor.length_prefixed_frame_reader: "f542326efebaf9be",
}
"""Functions that the runner reimplements, by the digest of the source it was written after."""


@pytest.mark.parametrize("function", REWRITTEN, ids=lambda function: function.__qualname__)
def test_reimplemented_functions_are_unchanged(function: Callable[..., Any]) -> None:
    """`_airflow.task_process` and `_airflow.supervisor.start_task` follow these functions; compare them anew if this fails."""
    source = inspect.getsource(function)
    assert sha256(source.encode()).hexdigest()[:16] == REWRITTEN[function]


def test_overridden_supervisor_methods_exist() -> None:
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


def test_final_state_is_sent_outside_of_handlers() -> None:
    """`_airflow.task_process` reports a failure in the place of a final state that is too large to be sent."""
    assert "finally:\n        if msg:\n            SUPERVISOR_COMMS.send(msg=msg)" in inspect.getsource(
        task_runner.run
    )
    assert parameters(task_runner._handle_current_task_failed) == ["ti"]


def test_extra_links_alone_pass_the_backend() -> None:
    """`RegionalXCom._set_xcom_in_db` leaves out what is too large: of all that a task pushes it may only meet extra links."""
    assert parameters(BaseXCom._set_xcom_in_db)[:2] == ["key", "value"]
    calls = [name for name, each in vars(task_runner).items() if _calls(each, "_xcom_push_to_db(")]
    assert calls == ["finalize"]
    assert [name for name, each in vars(task_runner).items() if _calls(each, "._set_xcom_in_db(")] == [
        "_xcom_push_to_db"
    ]
    assert "for oe in task.operator_extra_links" in inspect.getsource(task_runner.finalize)


def _calls(function: Any, text: str) -> bool:
    if not inspect.isfunction(function) or function.__module__ != task_runner.__name__:
        return False
    return text in inspect.getsource(function).partition(":\n")[2]


def test_loop_heartbeats_after_every_event() -> None:
    """The supervisor's loop calls the method in which cancellations are handled."""
    source = inspect.getsource(ActivitySubprocess._monitor_subprocess)
    assert "alive = self._service_subprocess(" in source
    assert source.index("if alive:") < source.index("self._send_heartbeat_if_needed()")
    assert "_last_successful_heartbeat" in source


def test_registered_handlers_are_called() -> None:
    """Proxy, task handle and zygote are registered as (handler, closer); a false result unregisters."""
    source = inspect.getsource(ActivitySubprocess._service_subprocess)
    assert "socket_handler, on_close = key.data" in source
    assert "need_more = socket_handler(key.fileobj)" in source


def test_stopped_task_reports_no_state() -> None:
    """`SERVER_TERMINATED` is a state that is sent directly, which here means not at all."""
    assert SERVER_TERMINATED in supervisor.STATES_SENT_DIRECTLY
    assert "STATES_SENT_DIRECTLY" in inspect.getsource(ActivitySubprocess.update_task_state_if_needed)


def test_child_uses_replaced_log_setup() -> None:
    """`_fork_main` looks the function up by its global name and passes the descriptor."""
    assert "_configure_logs_over_json_channel(log_fd)" in inspect.getsource(supervisor._fork_main)
    assert "sending_to_supervisor=True" in inspect.getsource(supervisor._configure_logs_over_json_channel)
    assert {"enable_pretty_log", "output", "sending_to_supervisor"} <= set(parameters(configure_logging))


def test_child_runs_given_target() -> None:
    """The child runs the target, and exits without cleaning up after the process it was forked from."""
    source = inspect.getsource(supervisor._fork_main)
    assert "target()" in source
    assert "os._exit" in source


def test_child_uses_replaced_orm_block() -> None:
    """The ORM is blocked before the target runs, by module attributes, options and environment, which all outlive a fork."""
    child = inspect.getsource(supervisor._fork_main)
    assert child.index("block_orm_access()") < child.index("target()")
    assert not inspect.signature(supervisor.block_orm_access).parameters


def test_comms_accept_existing_decoders() -> None:
    """Comms take ready-made decoders; otherwise each task would build them twice."""
    assert {"log", "body_decoder", "err_decoder", "socket"} <= {
        each.name for each in attrs.fields(comms.CommsDecoder)
    }


def test_imports_use_watched_backends() -> None:
    """Both look up the backends and the channel at the time of the call, by the names that a template replaces."""
    for function in (context._get_variable, context._get_connection):
        source = inspect.getsource(function)
        assert "from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded" in source
        assert "from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS" in source


def test_connections_use_replaced_function() -> None:
    """`Connection.get` and the template accessor look it up when they are called."""
    assert "from airflow.sdk.execution_time.context import _get_connection" in inspect.getsource(
        Connection.get
    )
    assert "return _get_connection(conn_id)" in inspect.getsource(context.ConnectionAccessor.get)


def test_log_masking_processor_masks_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mask_logs` is a structlog processor that masks the secrets of its own process."""
    masker = secrets_masker.SecretsMasker()
    masker.add_mask("sesame-open")
    monkeypatch.setattr(secrets_masker, "_secrets_masker", lambda: masker)
    assert mask_logs(None, "info", {"event": "say sesame-open"}) == {"event": "say ***"}


def test_a_masker_can_be_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns and replacer are the whole state of a masker: restored, it masks what it masked at first, and no more."""
    masker = secrets_masker.SecretsMasker()
    masker.add_mask("sesame-open")
    monkeypatch.setattr(secrets_masker, "_secrets_masker", lambda: masker)
    forget = _airflow.secrets_reset()
    masker.add_mask("hunter2-hunter2")
    assert masker.redact("sesame-open hunter2-hunter2") == "*** ***"
    forget()
    assert masker.redact("sesame-open hunter2-hunter2") == "*** hunter2-hunter2"


def test_parsing_context_uses_watched_environ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`get_parsing_context` reads these two variables, and `os.environ` can change its class."""
    for number, name in enumerate(sorted(fork_safety.PARSING_CONTEXT)):
        monkeypatch.setenv(name, str(number))
    assert tuple(get_parsing_context()) == ("0", "1")
    assert type(os.environ) is os._Environ


def test_client_retries_accept_another_sleep() -> None:
    """tenacity's `Retrying` is an attribute of the method."""
    slept: list[float] = []
    retrying = Client.request.retry.copy(sleep=slept.append)
    assert retrying.sleep == slept.append
    assert parameters(Client.request)[0] == "self"


def test_proxy_client_has_all_operations() -> None:
    """All groups of operations work on a client that has no httpx state."""
    client = ProxyClient(None)  # type: ignore[arg-type] # never called
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


def test_writes_without_body_are_known() -> None:
    """Of the client's writes, only the clearing of a run has no body: `task_calls.check` expects one of every other."""
    source = inspect.getsource(sdk_client)
    writes = re.findall(r"self\.client\.(?:post|put|patch)\((?:[^()]|\([^()]*\))*\)", source)
    assert len(writes) > 5
    without = [write for write in writes if "content=" not in write and "json=" not in write]
    assert without == ['self.client.post(f"dag-runs/{dag_id}/{run_id}/clear")']


class _Answers:
    """A proxy connection that gives these statuses, one after the other."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = [*statuses]
        self.calls: list[tuple[str, str, str | None]] = []

    def call(self, method: str, path: str, query: str, body: str | None) -> Reply:
        self.calls.append((method, path, body))
        return Reply(len(self.calls), self.statuses.pop(0), {}, None)


def test_existing_run_is_reset() -> None:
    """A run that exists already is cleared, if the operator wants it."""
    proxy = _Answers(409, 204)
    client = ProxyClient(proxy)  # type: ignore[arg-type] # what the client uses of it
    assert client.dag_runs.trigger("d", "r", reset_dag_run=True).ok
    assert proxy.calls[1] == ("POST", "dag-runs/d/r/clear", None)


def test_mail_names_a_missing_url() -> None:
    """Airflow's mail has the URL that `preload` adds; with a version that has one itself, that is to be removed."""
    from airflow.models import taskinstance

    assert "{{ti.mark_success_url}}" in inspect.getsource(taskinstance._get_email_subject_content)
    assert "mark_success_url" not in inspect.getsource(task_runner)


def test_dagbag_signals_are_sigsegv_only() -> None:
    """DagBag's module `signal` can be replaced."""
    lines = [line.strip() for line in inspect.getsource(dagbag).splitlines() if "signal." in line]
    assert lines == ["signal.signal(signal.SIGSEGV, handler)"]


def test_dag_module_names_are_replaced() -> None:
    """`_airflow.parsing` replaces the function in both modules that use it, and `DAGS_FOLDER` is an attribute."""
    name = "get_unique_dag_module_name("
    assert name in inspect.getsource(dagbag.DagBag._load_modules_from_file)
    assert name in inspect.getsource(python)
    assert parameters(dagbag.get_unique_dag_module_name) == ["file_path"]
    assert isinstance(settings.DAGS_FOLDER, str)


def test_the_orm_can_be_left_out() -> None:
    """`settings.initialize` looks at the variable that the zygote starts with."""
    (name,) = airflow_home.WITHOUT_ORM
    assert f'if not os.environ.get("{name}", None):' in inspect.getsource(settings.initialize)


def test_a_snapshot_is_a_bundle() -> None:
    """Name, version and path are what a task sees as `ti.bundle_instance`."""
    bundle = _airflow.SnapshotBundle(Source("dags", "sha256:1", "/bundles/1", "dag.py"))
    assert isinstance(bundle, BaseDagBundle)
    assert (bundle.name, bundle.version, str(bundle.path)) == ("dags", "sha256:1", "/bundles/1")
    assert bundle.get_current_version() == "sha256:1"
    assert bundle.is_initialized
    bundle.refresh()


def test_host_name_comes_from_callable() -> None:
    """`_prepare` puts the callable's host name into the task instance."""
    assert "ti.hostname = get_hostname()" in inspect.getsource(task_runner._prepare)
    assert _airflow.hostname() == ""


def test_numpy_seeding_is_recognised() -> None:
    """An untouched global generator is distinguished from a seeded and from a used one."""
    random = pytest.importorskip("numpy").random
    random.seed()
    assert not fork_safety._numpy_touched()
    random.random()
    assert fork_safety._numpy_touched()
    for seed in (7, [1, 2]):
        random.seed(seed)
        assert fork_safety._numpy_touched()
    random.seed()
