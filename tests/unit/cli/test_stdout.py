"""Stdout is the result, always: with --json the whole of it is JSON, whatever libraries print and log there."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.unit.cli.test_commands import COMMANDS, TOKEN, WORKER, Gateway

from airbridge.control_plane import dags
from airbridge.control_plane.cli import app, connection
from airbridge.control_plane.gateway import database
from airbridge.control_plane.identity import rotation, tokens
from airbridge.control_plane.local import demo, launch, shutdown, state
from airbridge.control_plane.local.demo import Report
from airbridge.control_plane.local.state import PlatformPhase, PlatformState
from airbridge.core.code.environment import LOCK, MANIFEST, Environment
from airbridge.core.code.snapshot import RESERVED
from airbridge.executor.bundles.environments import inputs
from airbridge.executor.bundles.parsing import ParseReport

NOW = "2026-01-01T00:00:00+00:00"
STATUS = {
    "now": NOW,
    "regions": [],
    "workers": [],
    "workers_total": 0,
    "gateways": [],
    "scheduler_seen_at": None,
}
DONE = {"kind": "issuer", "value": "ab", "reason": "x", "added_at": NOW, "added_by": "ann"}
PROPOSAL = {"id": "5f2c", "action": "revocation.add", "status": "proposed", "owner": "ann", "payload": {}}
BOUND_KEY = {"worker": "press-1", "region": "factory-7", "pool": "default", "key": "k", "owner": "ann", "joins": 1, "bound_at": NOW, "seen_at": NOW}  # fmt: skip
SECRETS = ("--secrets-dir", "SECRETS")

# Words of each command, and the gateway's answers. Paths in capitals are replaced.
LINES: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    "init": (("NEW", "--trust-domain", "x.test"), ()),
    "up": (("--detach", "--dir", "STATE"), ()),
    "down": (("--dir", "STATE"), ()),
    "demo": ((), ()),
    "status": (("--dir", "STATE"), (STATUS,)),
    "top": (("--times", "1", "--dir", "STATE"), (STATUS,)),
    "trace": (("d", "r", "t", "--dir", "STATE"), ({"entries": []},)),
    "usage": (("--dir", "STATE"), ({"lines": []},)),
    "audit": ((), ({"rows": [], "next": None},)),
    "worker list": ((), ({"workers": [WORKER]},)),
    **{
        f"worker {name}": (("eu-1", "--comment", "x"), (WORKER,))
        for name in ("drain", "maintenance", "resume", "revoke")
    },
    "worker bind": (("press-1", "--region", "factory-7", "--key", "k"), (BOUND_KEY,)),
    "worker unbind": (("press-1",), (BOUND_KEY,)),
    "worker keys": ((), ({"keys": [BOUND_KEY]},)),
    "token create": (("--region", "eu-west-1"), ({**TOKEN, "token": "abj_x"},)),
    "token root": (("--owner", "ann", "--scope", "workers:*"), ()),
    "token list": ((), ({"tokens": [TOKEN]},)),
    "token revoke": (("5f2c",), (TOKEN,)),
    "dags push": (("FOLDER",), ()),
    "dags check": (("FOLDER",), ()),
    "env build": (("FOLDER",), ()),
    "env show": (("BUILT",), ()),
    "env diff": (("BUILT", "BUILT"), ()),
    "env push": (("BUILT",), ({"inputs": "ab", "missing": []}, {"inputs": "ab", "missing": []})),
    "policy check": (("--file", "POLICY"), ()),
    "policy explain": (("--dag", "d", "--connection", "c", "--region", "r", "--file", "POLICY"), ()),
    "policy show": ((), ({"file": None, "digest": None, "rules": []},)),
    "revocation add": (("issuer", "ab", "--reason", "x"), (DONE,)),
    "revocation list": ((), ({"revocations": [DONE]},)),
    "revocation remove": (("issuer", "ab"), (DONE,)),
    "approvals list": ((), ({"proposals": [PROPOSAL]},)),
    "approvals show": (("5f2c",), (PROPOSAL,)),
    "approvals approve": (("5f2c",), ({"proposal": PROPOSAL},)),
    "approvals refuse": (("5f2c",), ({"proposal": PROPOSAL},)),
    "approvals collect": (("5f2c",), ({**TOKEN, "token": "abo_x"},)),
    "policy propose": (("--file", "POLICY"), ({"digest": "ab"},)),
    "login": (("--id-token-file", "POLICY"), ({**TOKEN, "token": "abo_x"},)),
    "ca show": (SECRETS, ()),
    "ca rotate": ((*SECRETS, "--force", "--trust-domain", "x.test"), ()),
    "ca new-root": (("ROOT", *SECRETS), ()),
    "ca drop-root": (("KEY_ID", *SECRETS), ()),
    "keys stage-signing": (SECRETS, ()),
    "keys activate-signing": ((*SECRETS, "--force"), ()),
    "keys retire-signing": (SECRETS, ()),
    "keys rotate-token": (SECRETS, ()),
    "keys retire-token": (SECRETS, ()),
    "keys rotate-publishing": (SECRETS, ()),
    "keys retire-publishing": ((*SECRETS, "--force"), ()),
}


class Noisy(logging.Handler):
    """Writes to whatever `sys.stdout` is, as the handlers of Airflow's logging configuration do."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(record.getMessage() + "\n")


def noise() -> None:
    logging.getLogger("httpx").info("HTTP Request: GET http://127.0.0.1/ready")
    sys.stdout.write("printed by a library\n")


@pytest.fixture
def noisy() -> Iterator[None]:
    handler, root = Noisy(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield
    root.removeHandler(handler)
    root.setLevel(before)


def platform_state() -> PlatformState:
    fields: dict[str, Any] = {
        name: field.default for name, field in PlatformState.model_fields.items() if not field.is_required()
    }
    return PlatformState.model_construct(
        **{**fields, "phase": PlatformPhase.READY, "seconds_to_ready": 1.0, "ui_url": "http://x", "components": ()}
    )  # fmt: skip


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files of every command, and what would start processes or open a database replaced."""
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "a.py").write_text("x = 1\n")
    built = tmp_path / "built"
    (built / RESERVED).mkdir(parents=True)
    (built / MANIFEST).write_bytes(Environment("", (), {}).encoded())
    for name in (LOCK, inputs.FILE):
        (built / name).touch()
    policy = tmp_path / "policy.toml"
    policy.write_text('schema = 1\n[[rule]]\nname = "all"\ndags = ["*"]\nconnections.read = ["*"]\n')

    def run_demo(*_: Any, **__: Any) -> Report:
        noise()
        return Report(
            state="success",
            tasks=(),
            result={},
            log_of="x",
            log=(),
            seconds_to_ready=1.0,
            seconds_to_run=1.0,
        )

    class Launched:
        def await_ready(self, _: Any) -> PlatformState:
            noise()
            return platform_state()

    @contextmanager
    def unit() -> Iterator[Any]:
        yield SimpleNamespace(session=None)

    monkeypatch.setattr(demo, "run", run_demo)
    monkeypatch.setattr(launch, "launch", lambda *_, **__: Launched())
    monkeypatch.setattr(shutdown, "shut_down", lambda _: 1)
    monkeypatch.setattr(database, "unit", unit)
    row = SimpleNamespace(id="1", expires_at=SimpleNamespace(isoformat=lambda: NOW))
    monkeypatch.setattr(tokens, "create_access", lambda *_, **__: SimpleNamespace(row=row, text="abo_x"))
    monkeypatch.setattr(dags, "push", lambda *_: dags.Pushed("pushed", "sha256:ab", 1, 1))
    monkeypatch.setattr(dags, "check", lambda *_, **__: ParseReport((), (), {"d": "a.py"}), raising=False)
    monkeypatch.setattr(state, "lock_holder", lambda _: None)
    monkeypatch.setattr(rotation, "drop_root", lambda *_: None)
    secrets = tmp_path / "secrets"
    made = CliRunner().invoke(app.command(), ["init", str(secrets), "--trust-domain", "x.test"])
    assert made.exit_code == 0, made.output
    CliRunner().invoke(app.command(), ["keys", "stage-signing", "--secrets-dir", str(secrets)])
    names = {
        "NEW": "new",
        "STATE": "state",
        "FOLDER": "dags",
        "SECRETS": "secrets",
        "ROOT": "root",
        "BUILT": "built",
    }
    return {word: str(tmp_path / name) for word, name in names.items()} | {"POLICY": str(policy)}


def test_every_json_command_is_tried() -> None:
    """Each command with --json is among those whose output is parsed."""
    with_json = {
        name
        for name, command in COMMANDS.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert set(LINES) == with_json


@pytest.mark.parametrize("name", sorted(LINES))
def test_whole_stdout_is_json(
    name: str, paths: dict[str, str], noisy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --json all of stdout is one JSON document; what else is written goes to stderr."""
    words, answers = LINES[name]
    if name == "keys stage-signing":
        CliRunner().invoke(app.command(), ["keys", "activate-signing", *SECRETS[:1], paths["SECRETS"], "--force"])  # fmt: skip
    gateway = Gateway(*((200, answer) for answer in answers))
    for name_of in ("client", "anonymous_client"):
        monkeypatch.setattr(connection, name_of, gateway.client)
    line = [*name.split(), *(paths.get(word, word) for word in words), "--json"]
    result = CliRunner().invoke(app.command(), line)
    assert result.exit_code == 0, (result.output, result.exception)
    json.loads(result.stdout)
    if name in {"demo", "up"} or answers:
        assert "HTTP Request" in result.stderr


def test_stdout_is_given_back() -> None:
    """After a command `sys.stdout` is what it was."""
    before = sys.stdout
    CliRunner().invoke(app.command(), ["--version"])
    assert sys.stdout is before


def test_version_names_airflow() -> None:
    """`--version` prints the version, and Airflow's."""
    result = CliRunner().invoke(app.command(), ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("airbridge 0.")
    assert "Apache Airflow 3.0.4" in result.stdout


def messages(command: click.Command) -> Iterator[str]:
    """Yield the help of a command and of its sub-commands, and the error of each of its options."""
    context = click.Context(command, info_name="airbridge")
    yield command.get_help(context)
    for parameter in command.params:
        yield click.BadParameter("x", ctx=context, param=parameter).format_message()
    for each in getattr(command, "commands", {}).values():
        yield from messages(each)


def test_nothing_reads_none() -> None:
    """No help and no error of an option shows a variable or default that is not there."""
    for text in messages(app.command()):
        assert "env var: 'None'" not in text
        assert "default: None" not in text
