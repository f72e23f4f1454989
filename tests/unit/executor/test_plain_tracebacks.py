"""Tracebacks in the scheduler's log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from airbridge.control_plane.dashboard import app
from airbridge.executor import plain_tracebacks


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def logged(capsys: pytest.CaptureFixture[str]) -> str:
    token = "secret-of-" + "a-workload"
    try:
        len(token) / 0
    except ZeroDivisionError:
        structlog.get_logger().exception("failed")
    return capsys.readouterr().out


def test_tracebacks_show_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """A workload carries a token: the log has the error and where it was raised, and no values."""
    plain_tracebacks.install()
    text = logged(capsys)
    assert "ZeroDivisionError: " in text
    assert "in logged" in text
    assert "secret-of-a-workload" not in text


def test_api_server_shows_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """The dashboard's errors are logged in the api-server, whose frames hold sessions and the database's address."""
    app.create()
    assert "secret-of-a-workload" not in logged(capsys)


def test_configured_structlog_is_kept() -> None:
    """A process that has configured structlog has its reasons."""
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    plain_tracebacks.install()
    [only] = structlog.get_config()["processors"]
    assert isinstance(only, structlog.processors.JSONRenderer)
