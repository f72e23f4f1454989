from __future__ import annotations

import os
from pathlib import Path

import pytest

from airbridge.core.exceptions import ParseFailure
from airbridge.executor.bundles import parse_environment
from airbridge.executor.bundles.parsing import ParseReport, check

HEAD = "from airflow.sdk import DAG, Variable, task\n"


def write(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + content)


def judge(root: Path, seconds: float = 60.0) -> ParseReport:
    return check(root, environment=parse_environment.of(os.environ, ["TEAM"]), timeout_seconds=seconds)


def test_one_look_at_many_files(tmp_path: Path) -> None:
    """All files are judged in one go: each failure with file, line and error, what is good or cannot be judged let through."""
    write(
        tmp_path,
        good='with DAG("good"):\n    pass\n',
        name_error='x = 1\nwith DAG("name_error"):\n    undefined\n',
        syntax="def (:\n",
        uses_helper="import team.helper\n",
        team__helper='raise ValueError("in helper")\n',
        again='with DAG("good"):\n    pass\n',
        cycle='with DAG("cycle"):\n    @task\n    def a(): ...\n    x, y = a(), a()\n    x >> y >> x\n',
        exits='import sys\nsys.exit("no")\n',
        variable='with DAG(Variable.get("name")):\n    pass\n',
        old_variable='from airflow.models import Variable\nwith DAG(Variable.get("name")):\n    pass\n',
        connection='from airflow.sdk import Connection\nConnection.get("db")\n',
    )
    # Airflow parses only files whose text has "airflow" and one of "dag" and "asset" in it.
    (tmp_path / "not_a_dag.py").write_text("syntax error, but no DAG file\n")
    (tmp_path / "ignored").mkdir()
    (tmp_path / "ignored" / "x.py").write_text(HEAD + "undefined\n")
    (tmp_path / ".airflowignore").write_text("ignored/\nteam/\n")
    verdict = judge(tmp_path)
    assert {
        failure.file: (failure.line, failure.error)
        for failure in verdict.failures
        if failure.file != "cycle.py"
    } == {
        "good.py": (None, "DAG 'good' is defined in again.py already"),
        "name_error.py": (4, "NameError: name 'undefined' is not defined"),
        "syntax.py": (2, "SyntaxError: invalid syntax"),
        "team/helper.py": (2, "ValueError: in helper (imported by uses_helper.py)"),
        "exits.py": (3, "SystemExit: no"),
    }
    # Compared by a word: Airflow's message names one of the tasks in the cycle.
    (cycle,) = [failure for failure in verdict.failures if failure.file == "cycle.py"]
    assert "Cycle" in cycle.error
    assert sorted(verdict.unjudged) == ["connection.py", "old_variable.py", "variable.py"]
    assert set(verdict.dags) == {"good"}


def test_deep_directories_end_no_check(tmp_path: Path) -> None:
    """What a file leaves in the scratch directory, however deep, is removed, and the check has its result."""
    write(
        tmp_path,
        deep="import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\nwith DAG('x'):\n    pass\n",
    )
    assert set(judge(tmp_path).dags) == {"x"}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (
            "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass\n",
            "parsing took longer than 25 s",
        ),
        ("import os\nos._exit(3)\n", "the parser ended with exit code 3"),
        ("import os\nos._exit(0)\n", "the parser ended early, without an error"),
        ("import os\nos.abort()\n", "the parser ended with signal SIGABRT"),
    ],
    ids=["hangs", "exits", "exits well", "crashes"],
)
def test_file_that_takes_the_parser_down(tmp_path: Path, code: str, error: str) -> None:
    """A file that hangs or ends the parser is named; nothing of it outlives the check."""
    write(tmp_path, a_good='with DAG("good"):\n    pass\n', b_bad=code)
    (failure,) = judge(tmp_path, seconds=25 if "longer" in error else 60).failures
    assert (failure.file, failure.line) == ("b_bad.py", None)
    assert failure.error.startswith(error)


def test_no_database_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of others finds neither the database nor this process's secrets in its environment."""
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://user:hunter2@db/airflow")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("MY_API_TOKEN", "hunter2")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    monkeypatch.setenv("TEAM", "weather")
    write(
        tmp_path,
        looks=(
            "import os\n"
            "from airflow.configuration import conf\n"
            "assert os.environ['TEAM'] == 'weather'\n"
            "assert 'hunter2' not in repr(dict(os.environ)), os.environ\n"
            "assert 'hunter2' not in conf.get('database', 'sql_alchemy_conn')\n"
        ),
    )
    assert judge(tmp_path).failures == ()


def test_what_parsing_needs_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that decide how a file is read, plugins and named variables are there; nothing that is not named is."""
    monkeypatch.setenv("AIRFLOW__CORE__PLUGINS_FOLDER", "/plugins")
    monkeypatch.setenv("AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT", "77")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://db/airflow")
    monkeypatch.setenv("TEAM", "weather")
    monkeypatch.setenv("INNOCENT", "hunter2")
    found = parse_environment.of(os.environ, ["TEAM"])
    assert found["AIRFLOW__CORE__PLUGINS_FOLDER"] == "/plugins"
    assert found["AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT"] == "77"
    assert found["TEAM"] == "weather"
    assert "hunter2" not in repr(found)
    assert "FERNET" not in repr(found).upper()
    assert "/plugins" in found["PYTHONPATH"].split(os.pathsep)
    assert found["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "sqlite://"


def test_failure_as_text() -> None:
    """A failure reads as editors and CI logs expect it: file, line, error."""
    assert str(ParseFailure("a/b.py", 3, "NameError: x")) == "a/b.py:3: NameError: x"
    assert str(ParseFailure("a/b.py", None, "too slow")) == "a/b.py: too slow"
