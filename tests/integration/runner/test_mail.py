"""Airflow's own mail of failures and retries, sent by a task whose policy denies it the connection of a mail server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.integration.runner.world import World

FILE = """
from datetime import datetime
from airflow.hooks.base import BaseHook
from airflow.sdk import DAG, task

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1), default_args={"email": ["ann@example.com"]}):
    @task(email_on_failure=True, email_on_retry=True)
    def fails():
        raise ValueError("as it must")
    fails()

    @task
    def reads():
        BaseHook.get_connection("warehouse")
    reads()
"""


@dataclass
class MailServer:
    """SMTP server that keeps what it receives, and knows no user."""

    sock: socket.socket
    mails: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self.sock)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        with suppress(ConnectionError):
            while line := (await reader.readline()).decode().strip():
                self.commands.append(line.split()[0].upper())
                if self.commands[-1] == "DATA":
                    writer.write(b"354 go on\r\n")
                    self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                writer.write(b"221 bye\r\n" if self.commands[-1] == "QUIT" else b"250 fine\r\n")
        writer.close()


@pytest.fixture
def server() -> Iterator[MailServer]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield MailServer(sock)


@pytest.fixture
def mail_world(tmp_path: Path, server: MailServer) -> Iterator[World]:
    smtp = {"smtp_host": "127.0.0.1", "smtp_port": str(server.port), "smtp_starttls": "False"}
    world = World(tmp_path, options={"smtp": smtp, "email": {"from_email": "airflow@example.com"}})
    world.do(server.start())
    yield world
    world.close()


@pytest.mark.parametrize("should_retry", [False, True])
def test_mail_is_sent_without_its_connection(
    mail_world: World, server: MailServer, should_retry: bool
) -> None:
    """One mail for a failure or a retry, without a login; the log has the rule that would grant the connection."""
    mail_world.api.denied["connections/smtp_default"] = "no rule allows it"
    root = mail_world.write(FILE)
    done = mail_world.do(
        mail_world.run(root, "fails", should_retry=should_retry, max_tries=int(should_retry))
    )
    assert done.proxy.states == ["up_for_retry" if should_retry else "failed"]
    assert len(server.mails) == 1, done.log
    assert "To: ann@example.com" in server.mails[0]
    assert "AUTH" not in server.commands
    assert "connections.read" in done.log
    assert "Top level error" not in done.log


def test_other_denials_are_errors(mail_world: World) -> None:
    """Any other connection that the policy denies is an error with the policy's reason."""
    mail_world.api.denied["connections/warehouse"] = "no rule allows it"
    done = mail_world.do(mail_world.run(mail_world.write(FILE), "reads"))
    assert done.proxy.states == ["failed"]
    assert "no rule allows it" in done.log
