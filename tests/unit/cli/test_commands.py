"""The command line: help, exit statuses, requests to the gateway and rendering of its responses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from airbridge.control_plane.cli import app, arguments, connection, demo_view, output
from airbridge.control_plane.cli.commands import tokens
from airbridge.control_plane.cli.connection import ConnectionOptions
from airbridge.control_plane.cli.exit_codes import Exit, exit_for
from airbridge.control_plane.cli.progress import ComponentDisplay, PushDisplay
from airbridge.control_plane.exceptions import Proposed, Refused
from airbridge.control_plane.local.demo import Report, TaskRow, task_rows
from airbridge.control_plane.local.exceptions import (
    AlreadyRunning,
    NotRunning,
    PlatformUnreachable,
    StartFailed,
)
from airbridge.control_plane.local.state import ComponentState, Phase
from airbridge.control_plane.operator_client import Endpoint, OperatorClient
from airbridge.core.exceptions import AirBridgeError, BundleError, ConfigurationError
from airbridge.core.protocol import Problem, RefusalReason

WORKER = {
    "id": "eu-1",
    "region": "eu-west-1",
    "pool": "default",
    "state": "active",
    "wanted": "draining",
    "comment": "kernel",
    "versions": {"airbridge": "0.1.0"},
    "slots_total": 8,
    "slots_used": 3,
    "journal_pending": 0,
    "last_heartbeat_at": "2026-01-01T00:00:00+00:00",
}
TOKEN = {
    "id": "5f2c",
    "kind": "join",
    "owner": "ops",
    "scopes": {"region": "eu-west-1", "pool": "default"},
    "uses_left": 1,
    "created_at": "2026-01-01T00:00:00+00:00",
    "expires_at": "2026-01-02T00:00:00+00:00",
    "last_used_at": None,
    "revoked_at": None,
}


def commands(command: click.Command, path: str = "") -> dict[str, click.Command]:
    if isinstance(command, click.Group):
        return {
            k: v for name, sub in command.commands.items() for k, v in commands(sub, f"{path} {name}").items()
        }
    return {path.strip(): command}


COMMANDS = commands(typer.main.get_command(app.build()))


class Gateway:
    """The operators' API as a plain function that records its requests."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self._answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path, body))
        status, answer = self._answers.pop(0)
        return httpx.Response(status, json=answer)

    def client(self, *_: object) -> OperatorClient:
        return OperatorClient(Endpoint("https://gateway.test", None, "abo_secret"), httpx.MockTransport(self))


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*answers: tuple[int, Any]) -> Gateway:
        made = Gateway(*answers)
        monkeypatch.setattr(connection, "client", made.client)
        return made

    return install


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app.build(), list(words))


def test_commands_match_documentation() -> None:
    """The commands are those that the documentation names."""
    assert set(COMMANDS) == {
        "init",
        "login",
        "up",
        "down",
        "status",
        "top",
        "trace",
        "usage",
        "demo",
        "gateway",
        "dag-processor",
        "worker list",
        "worker drain",
        "worker maintenance",
        "worker resume",
        "worker revoke",
        "worker bind",
        "worker unbind",
        "worker keys",
        "token create",
        "token list",
        "token root",
        "token revoke",
        "dags push",
        "dags check",
        "env build",
        "env show",
        "env diff",
        "env push",
        "audit",
        "policy check",
        "policy explain",
        "policy propose",
        "policy show",
        "approvals list",
        "approvals show",
        "approvals approve",
        "approvals refuse",
        "approvals collect",
        "revocation add",
        "revocation list",
        "revocation remove",
        "ca show",
        "ca rotate",
        "ca new-root",
        "ca drop-root",
        "keys stage-signing",
        "keys activate-signing",
        "keys retire-signing",
        "keys rotate-publishing",
        "keys rotate-token",
        "keys retire-publishing",
        "keys retire-token",
    }


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_sentence_and_example(name: str) -> None:
    """Every command has a sentence and an example that begins with its own words."""
    command = COMMANDS[name]
    assert command.help
    assert f"airbridge {name}" in (command.epilog or "")


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"gateway", "dag-processor"}))
def test_every_command_has_json(name: str) -> None:
    """--json is there wherever there is a result."""
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("x"), Exit.USAGE),
        (AlreadyRunning(Path("x"), 1), Exit.WRONG_STATE),
        (NotRunning(Path("x")), Exit.WRONG_STATE),
        (PlatformUnreachable("x"), Exit.UNREACHABLE),
        (Refused(403, RefusalReason.FORBIDDEN, "x"), Exit.REFUSED),
        (Proposed("x"), Exit.PROPOSED),
        (StartFailed("x", "y"), Exit.FAILED),
        (BundleError("x"), Exit.FAILED),
        (AirBridgeError("x"), Exit.FAILED),
    ],
)
def test_exit_statuses(error: AirBridgeError, status: Exit) -> None:
    """Each kind of error has its status."""
    assert exit_for(error) is status


def test_worker_list_formats(gateway: Any) -> None:
    """The table has the worker, its slots and its wanted state; JSON is the gateway's response unchanged."""
    gateway((200, {"workers": [WORKER]}), (200, {"workers": [WORKER]}))
    shown = invoke("worker", "list")
    assert shown.exit_code == 0
    assert all(word in shown.stdout for word in ("eu-1", "3/8", "draining", "kernel"))
    assert json.loads(invoke("worker", "list", "--json").stdout) == [WORKER]


@pytest.mark.parametrize("action", ["drain", "maintenance", "resume", "revoke"])
def test_worker_actions_carry_the_comment(gateway: Any, action: str) -> None:
    """The action is posted to the worker with the comment."""
    asked = gateway((200, WORKER))
    assert invoke("worker", action, "eu-1", "--comment", "why").exit_code == 0
    assert asked.asked == [("POST", f"/operator/v1/workers/eu-1/{action}", {"comment": "why"})]


def test_token_is_alone_on_stdout(gateway: Any) -> None:
    """Stdout holds the token and nothing else, for scripts."""
    asked = gateway((200, {**TOKEN, "token": "abj_x"}))
    made = CliRunner().invoke(app.build(), ["token", "create", "--region", "eu-west-1", "--ttl", "2h"])
    assert made.stdout == "abj_x\n"
    assert "expires at" in made.stderr
    body = {"kind": "join", "region": "eu-west-1", "pool": "default", "uses": 1, "ttl_seconds": 7200.0}
    assert asked.asked == [("POST", "/operator/v1/tokens", {"token": body})]


def test_an_access_token_needs_a_scope(gateway: Any) -> None:
    """Without a scope it is refused here, with an example."""
    result = invoke("token", "create", "--owner", "ci")
    assert isinstance(result.exception, ConfigurationError)
    assert "dags:push" in str(result.exception)


def test_token_kinds_are_exclusive(gateway: Any) -> None:
    """Both at once, or neither, is a usage error."""
    assert isinstance(invoke("token", "create").exception, ConfigurationError)
    both = invoke("token", "create", "--region", "r", "--owner", "o", "--scope", "s:t")
    assert isinstance(both.exception, ConfigurationError)


@pytest.mark.parametrize("ttl", ["", "12", "h", "0h", "-1h", "1w", "1.5h"])
def test_malformed_ttl_is_refused(ttl: str) -> None:
    """Only a whole number with a unit is a TTL."""
    with pytest.raises(ConfigurationError, match="like 12h"):
        tokens._seconds(ttl)


def test_token_list_and_revoke(gateway: Any) -> None:
    """A join token's scope reads pool@region; revoking answers with the time."""
    asked = gateway((200, {"tokens": [TOKEN]}), (200, {**TOKEN, "revoked_at": "now"}))
    assert "default@eu-west-1" in invoke("token", "list").stdout
    assert invoke("token", "revoke", "5f2c").stdout == "5f2c: revoked at now\n"
    assert asked.asked[1][:2] == ("DELETE", "/operator/v1/tokens/5f2c")


def test_dags_push_sends_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder goes as one archive to the bundle; the version and the duration of the check are the result.

    Where stderr is no terminal it has one line, for the job's log.
    """
    (tmp_path / "a.py").write_text("x = 1\n")
    more: dict[str, Any] = {}
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        sent.append(request)
        return httpx.Response(200, json={"bundle": "team", "version": "sha256:ab", **more})

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(
        connection, "client", lambda *_: OperatorClient(Endpoint("https://g.test", None, "t"), transport)
    )
    result = invoke("dags", "push", str(tmp_path), "--bundle", "team", "--json")
    assert json.loads(result.stdout)["version"] == "sha256:ab"
    assert (sent[0].method, sent[0].url.path) == ("PUT", "/operator/v1/dags/team")
    assert sent[0].content.startswith(b"\x1f\x8b")
    assert sent[0].headers["content-length"] == str(len(sent[0].content))
    assert "transfer-encoding" not in sent[0].headers

    assert invoke("dags", "push", str(tmp_path)).stdout == "pushed sha256:ab (1 files)\n"  # an older gateway
    more["check_seconds"] = 3.21
    result = invoke("dags", "push", str(tmp_path))
    assert result.stdout == "pushed sha256:ab (1 files, checked in 3.2 s)\n"
    size = len(sent[0].content) / 1024
    assert result.stderr == f"pushing {tmp_path} to bundle pushed: 1 files, {size:.1f} KiB\n"
    assert json.loads(invoke("dags", "push", str(tmp_path), "--json").stdout)["check_seconds"] == 3.21


def test_push_display_on_terminal() -> None:
    """On a terminal the step is drawn: how much is sent, then what the gateway does."""
    drawn = io.StringIO()
    with PushDisplay(
        Console(file=drawn, force_terminal=True, width=120, highlight=False), "./dags", "team"
    ) as display:
        display.packed(3, 200_000)
        display.sent(65_536)
        display._progress.refresh()
        display.sent(200_000)
        display._progress.refresh()
    assert "pushing ./dags to bundle team: 3 files, 195.3 KiB" in drawn.getvalue()
    assert "sending: 32 %" in drawn.getvalue()
    assert "parses the DAG files" in drawn.getvalue()


def test_refusal_carries_gateway_detail(gateway: Any) -> None:
    """403 becomes `Refused` with reason and detail, which the command line prints."""
    problem = Problem(status=403, reason=RefusalReason.FORBIDDEN, detail="no scope workers:drain")
    gateway((403, problem.model_dump(mode="json")))
    result = invoke("worker", "drain", "eu-1")
    assert isinstance(result.exception, Refused)
    assert "no scope workers:drain" in str(result.exception)


def test_broken_gateway_counts_as_unreachable(gateway: Any) -> None:
    """A 5xx, or something that is not the gateway, is status 4."""
    gateway((502, {"oops": 1}))
    assert isinstance(invoke("worker", "list").exception, PlatformUnreachable)


def test_missing_platform_error_names_up(tmp_path: Path) -> None:
    """No gateway named and none running: the error names the command that starts one."""
    result = invoke("worker", "list", "--dir", str(tmp_path))
    assert isinstance(result.exception, NotRunning)
    assert "airbridge up" in str(result.exception)


def test_url_requires_token_file(tmp_path: Path) -> None:
    """A URL without a token names the option and its variable."""
    with pytest.raises(ConfigurationError, match="AIRBRIDGE_TOKEN_FILE"):
        connection.connect(connection.ConnectionOptions(tmp_path, "https://g.test"))
    with pytest.raises(ConfigurationError, match="No such file"):
        connection.connect(connection.ConnectionOptions(tmp_path, "https://g.test", tmp_path / "none"))


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[ConnectionOptions]:
    """The connection options of each command that is run; no gateway is called."""
    seen: list[ConnectionOptions] = []

    def connect(given: ConnectionOptions) -> OperatorClient:
        seen.append(given)
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"workers": []}))
        return OperatorClient(Endpoint("https://g.test", None, "t"), transport)

    monkeypatch.setattr(connection, "connect", connect)
    return seen


CONNECTION = ("--url", "https://a.test", "--token-file", "token", "--ca-file", "ca.crt")


@pytest.mark.parametrize("words", [("worker", "list", *CONNECTION), ("worker", *CONNECTION, "list")])
def test_connection_options_in_both_positions(
    connected: list[ConnectionOptions], words: tuple[str, ...]
) -> None:
    """The connection options mean the same before and after the sub-command."""
    assert invoke(*words).exit_code == 0
    assert connected == [
        ConnectionOptions(Path(".airbridge").resolve(), "https://a.test", Path("token"), Path("ca.crt"))
    ]


def test_later_connection_option_wins(connected: list[ConnectionOptions]) -> None:
    """Of an option that is given in both positions, the one after the sub-command applies."""
    invoke("worker", "--url", "https://group.test", "list", "--url", "https://command.test")
    assert connected[0].url == "https://command.test"


def test_option_beats_environment(
    connected: list[ConnectionOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option of the group is not replaced by the variable, which the sub-command reads too."""
    monkeypatch.setenv("AIRBRIDGE_URL", "https://variable.test")
    invoke("worker", "--url", "https://option.test", "list")
    invoke("worker", "list")
    assert [each.url for each in connected] == ["https://option.test", "https://variable.test"]


def test_pairs_are_parsed() -> None:
    """name=value, with = in the value; a word without = names the option."""
    assert arguments.pairs(["a=b=c"], "--x") == {"a": "b=c"}
    with pytest.raises(typer.BadParameter, match="'nonsense' must be written name=value"):
        arguments.pairs(["nonsense"], "--x")


def test_init_makes_keys_once(tmp_path: Path) -> None:
    """The files are listed; a second time is refused."""
    words = ("init", str(tmp_path / "secrets"), "--trust-domain", "example.com", "--json")
    made = json.loads(invoke(*words).stdout.partition("\nNext")[0])
    assert all(Path(file).exists() for file in made["files"])
    assert "never overwritten" in str(invoke(*words).exception)


def a_report(**more: Any) -> Report:
    row = TaskRow(
        task="t", data_in="eu-west-1", region="eu-west-1", worker="w", wait=0.1, run=1.0, state="success"
    )
    given = {"state": "success", "tasks": (row,), "result": {"a": 1}, "log_of": "t", "log": ("one", "two")}
    return Report(**{**given, "seconds_to_ready": 1.0, "seconds_to_run": 2.0, **more})


def test_demo_requires_tasks_near_data() -> None:
    """A run that succeeded with a task in the wrong region is not ok."""
    assert a_report().ok
    strayed = a_report().tasks[0].model_copy(update={"region": "us-east-1"})
    assert not a_report(tasks=(strayed,)).ok
    assert not a_report(state="failed").ok


def test_demo_report_content(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's report has each task's region and result."""
    demo_view.print_report(output.results(), a_report())
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("ran in", "eu-west-1", '"a": 1', "two", "region of its data"))


def test_task_rows_join_airflow_and_ledger() -> None:
    """Waiting is from queued to started, running from started to ended; an unplaced task has neither place nor times."""
    base = {"map_index": -1, "queued_when": None, "start_date": None, "end_date": None, "state": None}
    done = {
        **base,
        "task_id": "nottingham_1920s",
        "queued_when": "2026-01-01T00:00:00Z",
        "start_date": "2026-01-01T00:00:01.250Z",
        "end_date": "2026-01-01T00:00:03Z",
        "state": "success",
    }
    rows = task_rows([{**base, "task_id": "compare"}, done], {("nottingham_1920s", -1): ("eu-west-1", "w")})
    assert [(row.task, row.region, row.wait, row.run) for row in rows] == [
        ("nottingham_1920s", "eu-west-1", 1.25, 1.75),
        ("compare", None, None, None),
    ]


def component(name: str, phase: Phase, **more: Any) -> ComponentState:
    given = {"pid": 1, "url": None, "log": "/x.log", "restarts": 0, "seconds_to_ready": None}
    return ComponentState(name=name, phase=phase, **{**given, **more})


def test_progress_without_terminal_is_lines() -> None:
    """One line for what matters, with the URL of what is ready and the log of what died; none for the rest."""
    written = io.StringIO()
    with ComponentDisplay(Console(file=written, width=100)) as display:
        display.changed(component("aws", Phase.STARTING))
        display.changed(component("aws", Phase.READY, url="http://127.0.0.1:1"))
        display.changed(component("gateway", Phase.BACKOFF))
        display.note("a note")
    lines = [line.split("s ", 1)[1].split() for line in written.getvalue().splitlines()]
    assert lines == [
        ["aws", "ready", "http://127.0.0.1:1"],
        ["gateway", "backoff", "(see", "/x.log)"],
        ["a", "note"],
    ]


def test_progress_leaves_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """With a terminal on stderr the table is drawn there; what is written to stdout stays on stdout."""
    terminal = io.StringIO()
    with ComponentDisplay(Console(file=terminal, force_terminal=True, width=100)) as display:
        display.changed(component("aws", Phase.READY, url="http://127.0.0.1:1", seconds_to_ready=1.0))
        output.emit_text("result")
        display.settle()
        display.changed(component("aws", Phase.STOPPED))
    assert capsys.readouterr().out == "result\n"
    assert "result" not in terminal.getvalue()
    assert "aws" in terminal.getvalue()


# --- What an operator sees

STEP = {
    "at": "2026-01-31T10:00:00+00:00",
    "seconds": 0.25,
    "side": "edge",
    "worker": "eu-1",
    "actor": "spiffe://x",
    "what": "process started on eu-1",
    "trouble": False,
}
TIMELINE = {
    "task": "dag / run / task",
    "state": "queued",
    "cause": {
        "code": "parity",
        "sentence": "queued 4 min: region eu-west-1 has 0 workers that the matrix allows",
        "notes": [{"code": "certificate", "sentence": "the certificate of eu-1 ends in 3 min"}],
    },
    "steps": [STEP],
    "skews": {"eu-1": 2.5},
    "trace_id": "a" * 32,
    "complete": True,
}
STATUS = {
    "now": "2026-01-31T10:00:00+00:00",
    "scheduler_seen_at": "2026-01-31T09:59:55+00:00",
    "gateways": [{"alive": True}],
    "regions": [
        {
            "name": "eu-west-1",
            "home": True,
            "health": "cut_off",
            "troubled": True,
            "alive": 0,
            "slots_used": 0,
            "slots": 0,
            "waiting": 3,
            "running": 0,
            "oldest_waiting_since": "2026-01-31T09:58:00+00:00",
            "settled": 0,
            "pools": [{"failed": 0}],
            "why": "none of 1 worker is heard of",
        }
    ],
    "workers": [
        {
            "id": "eu-1",
            "region": "eu-west-1",
            "pool": "default",
            "standing": "refused",
            "slots_used": 0,
            "slots": 8,
            "airbridge": "0.0.9",
            "journal_pending": 2,
            "silent_seconds": 700.0,
            "clock_skew_seconds": -1.5,
            "certificate_seconds_left": -60.0,
            "why": "AirBridge is 0.0.9, must be ==0.1.*",
        }
    ],
    "workers_total": 41,
}
STATUS |= {"workers_troubled": STATUS["workers"], "workers_troubled_total": 1}


def test_trace_output_content(gateway: Any, tmp_path: Path) -> None:
    """The sentence and its code come first, then the steps, then whose clock was corrected by how much."""
    of_trigger = STEP | {"what": "granted to eu-1", "of_trigger": True}
    asked = gateway((200, TIMELINE | {"steps": [STEP, of_trigger]}))
    text = invoke("trace", "dag", "latest", "task", "--dir", str(tmp_path)).stdout
    assert "trigger: granted to eu-1" in text
    assert "trigger: process started" not in text
    first, second, third, *_ = text.splitlines()
    assert "dag / run / task  (queued)" == first
    assert second.endswith("0 workers that the matrix allows  [parity]")
    assert third.startswith("note: the certificate of eu-1")
    assert "process started on eu-1" in text
    assert "250 ms" in text
    assert "eu-1's clock is 2.500 s ahead" in text
    assert asked.asked == [("GET", "/operator/v1/timeline", None)]


def test_status_output_content(gateway: Any, tmp_path: Path) -> None:
    """Status lists regions with their health, workers with the matrix's verdict on them, and the number of workers left out."""
    gateway((200, STATUS))
    text = invoke("status", "--all", "--dir", str(tmp_path)).stdout
    assert "scheduler seen 5 s ago   gateways 1 up" in text
    assert "cut_off" in text
    assert "AirBridge is 0.0.9, must be ==0.1.*" in text
    assert "ended 60 s ago" in text
    assert "... and 40 more workers" in text


def test_status_lists_limits(gateway: Any, tmp_path: Path) -> None:
    """Limits that hold work back come first, with what runs, starts and waits; without limits there is no table."""
    limit = {
        "name": "mail",
        "full": False,
        "running": 3,
        "max_running": None,
        "starts": 5,
        "starts_per_minute": 60,
    }
    full = {**limit, "name": "erp", "full": True, "running": 20, "max_running": 20, "starts_per_minute": None}
    limits = [{**limit, "waiting": 0, "pools": ["gpu@eu-west-1"]}, {**full, "waiting": 312, "pools": []}]
    gateway((200, {**STATUS, "limits": limits}), (200, STATUS))
    lines = [line.split() for line in invoke("status", "--dir", str(tmp_path)).stdout.splitlines()]
    rows = [line for line in lines if line and line[0] in {"erp", "mail"}]
    assert rows == [["erp", "full", "20/20", "312"], ["mail", "free", "3", "5/60", "0", "gpu@eu-west-1"]]
    assert "starts (1 min)" not in invoke("status", "--dir", str(tmp_path)).stdout


def test_status_of_a_large_platform_fits_a_screen(gateway: Any, tmp_path: Path) -> None:
    """Of fifty regions and a thousand workers, those in trouble are listed, and the totals; --all lists the rest."""
    [cut_off], [refused] = STATUS["regions"], STATUS["workers"]
    calm = {
        **cut_off,
        "home": False,
        "health": "healthy",
        "troubled": False,
        "alive": 20,
        "slots": 160,
        "slots_used": 80,
        "why": "",
    }
    large = {
        **STATUS,
        "regions": [cut_off, *({**calm, "name": f"region-{n}", "running": 80} for n in range(49))],
        "workers": [
            refused,
            *({**refused, "id": f"w{n}", "standing": "serving", "why": ""} for n in range(499)),
        ],
        "workers_total": 1000,
        "workers_troubled": [{**refused, "id": f"bad-{n}"} for n in range(50)],
        "workers_troubled_total": 70,
    }
    gateway(
        (200, large), (200, large), (200, {**large, "regions": large["regions"][1:], "workers_troubled": []})
    )
    text = invoke("status", "--dir", str(tmp_path)).stdout
    assert len(text.splitlines()) < 40
    assert "regions 50, 1 in trouble   workers 1000, 70 in trouble   slots 3920/7840" in text
    assert "running 3920" in text
    assert "eu-west-1 (home)" in text
    assert "region-7" not in text
    assert text.count("bad-") == 12
    assert "... and 58 more in trouble" in text
    assert "region-48" in invoke("status", "--all", "--dir", str(tmp_path)).stdout
    assert (
        "none of 49 regions is in trouble (--all lists them)"
        in invoke("status", "--dir", str(tmp_path)).stdout
    )


def test_top_refreshes(gateway: Any, tmp_path: Path) -> None:
    """With --json each look is a document; --times ends it."""
    gateway((200, STATUS), (200, STATUS))
    text = invoke("top", "--times", "2", "--every", "0.5", "--json", "--dir", str(tmp_path)).stdout
    assert 2 == text.count('"scheduler_seen_at"')
