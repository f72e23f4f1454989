"""Whether the DAG files of a tree parse, found out by parsing them in a child process.

The child (`airbridge.executor._parse`) parses and serialises each file as Airflow's dag-processor does. It has no
database, its own session, a bound on time, and an environment that the caller chooses: `trusted_environment` for
code that this process runs anyway (the dag-processor), `untrusted_environment` for code of others (the gateway), which
is confined besides.

A file that fails only because it asked for a variable or a connection while it was parsed counts as good: there are
none to be had here, and Airflow will judge it where there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from airbridge.executor.exceptions import BundleError, ParseFailure

log = structlog.get_logger(__name__)

_CONCEALED = re.compile(
    r"^(AIRFLOW|AIRBRIDGE|AWS)_|SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|_KEY$|_CONN$|_DSN$|_URI$|DATABASE",
    re.IGNORECASE,
)
_STDERR_TAIL = 2000


@dataclass(frozen=True)
class Verdict:
    """What became of the files: those that fail, and those that cannot be judged without variables and connections."""

    failures: tuple[ParseFailure, ...]
    unjudged: tuple[str, ...] = ()
    dags: tuple[str, ...] = ()
    """The ids of the DAGs found."""


def trusted_environment(parent: Mapping[str, str]) -> dict[str, str]:
    """This process's own environment, as Airflow's parsing processes have it, but for the database."""
    return {**parent, **_no_database()}


def untrusted_environment(parent: Mapping[str, str]) -> dict[str, str]:
    """What concerns neither Airflow nor AWS nor looks like a secret: the code is of others."""
    kept = {name: value for name, value in parent.items() if not _CONCEALED.search(name)}
    return {**kept, **_no_database()}


def _no_database() -> dict[str, str]:
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACKS": "True",
        "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACK_DEPTH": "50",
        "AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS": "",
        "AIRFLOW__LOGGING__REMOTE_LOGGING": "False",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def check(
    root: Path, *, environment: Mapping[str, str], timeout_seconds: float = 120.0, confined: bool = False
) -> Verdict:
    """Parse every DAG file under `root`. Raises `BundleError` only if no parser could be started.

    `confined` is for code of others: see `airbridge.executor.confinement`.
    """
    root = root.resolve()
    with tempfile.TemporaryDirectory(prefix="airbridge-parse-") as scratch:
        report = Path(scratch, "report.jsonl")
        report.touch()
        ending = _run(root, report, {"AIRFLOW_HOME": scratch, **environment}, timeout_seconds, confined)
        verdict = _read(report, ending)
    log.info(
        "bundle.parsed",
        dags=len(verdict.dags),
        failures=len(verdict.failures),
        unjudged=list(verdict.unjudged),
    )
    return verdict


def _run(
    root: Path, report: Path, environment: Mapping[str, str], timeout_seconds: float, confined: bool
) -> str:
    """Run the child to its end; return what is wrong with how it ended, or an empty string."""
    command = [
        sys.executable,
        "-m",
        "airbridge.executor._parse",
        str(root),
        str(report),
        str(int(timeout_seconds)),
        *(["confined"] if confined else []),
    ]
    with tempfile.TemporaryFile() as stderr:
        try:
            child = subprocess.Popen(  # noqa: S603 - our own module under our own interpreter
                command,
                cwd=report.parent,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as error:
            raise BundleError(f"the DAG parser cannot be started: {error}", transient=True) from error
        try:
            code = child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return f"parsing took longer than {timeout_seconds:g} s"
        finally:
            if child.returncode is None:
                _end(child)
        if code == 0:
            return ""
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _STDERR_TAIL))
        last = stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the parser ended with {how}" + (f": {last}" if last else "")


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started: it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read(report: Path, ending: str) -> Verdict:
    failures: list[ParseFailure] = []
    unjudged: list[str] = []
    dags: list[str] = []
    parsing = "the DAG folder"
    done = False
    for line in report.read_text().splitlines():
        entry = json.loads(line)
        match entry.pop("kind"):
            case "parsing":
                parsing = entry["file"]
            case "failed":
                failures.append(ParseFailure(entry["file"], entry["line"], entry["error"]))
            case "unjudged":
                unjudged.append(entry["file"])
            case "dag":
                dags.append(entry["dag_id"])
            case "done":
                done = True
    if not done:
        failures.append(ParseFailure(parsing, None, ending or "the parser ended early, without an error"))
    return Verdict(tuple(failures), tuple(unjudged), tuple(dags))
