"""ci/scripts/metrics.py: figures over a small tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

METRICS = Path(__file__).resolve().parents[3] / "ci" / "scripts" / "metrics.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script as the Makefile does."""
    command = [sys.executable, str(METRICS), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def cells(output: str, measure: str) -> list[str]:
    """The source and test cells of the line that begins with `measure`."""
    (line,) = (line for line in output.splitlines() if line.startswith(f"| {measure}"))
    return [cell.strip() for cell in line.split("|")[3:5]]


def write(tree: Path, name: str, text: str = "") -> None:
    """Write a file of the tree."""
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(text)


def test_flat_folder_counts_modules(tmp_path: Path) -> None:
    """`__init__.py`, sub-packages, migrations, environments and tests are not modules of a folder."""
    for number in range(3):
        write(tmp_path, f"package/module_{number}.py")
        write(tmp_path, f"package/migrations/versions/{number}a.py")
        write(tmp_path, f"package/migrations/versions/{number}b.py")
        for folder in (".venv", "cdktf.out", "node_modules"):
            write(tmp_path, f"{folder}/{number}a.py")
            write(tmp_path, f"{folder}/{number}b.py")
    write(tmp_path, "package/__init__.py")
    write(tmp_path, "package/inner/module.py")
    write(tmp_path, "tests/test_one.py")
    assert cells(run(tmp_path).stdout, "largest flat folder") == ["3", "1"]


def test_docstrings_are_judged_by_beginning(tmp_path: Path) -> None:
    """Only the first word counts, in modules, classes and functions."""
    write(
        tmp_path,
        "module.py",
        '"""What it is."""\n'
        'class A:\n    """Whether: a question."""\n'
        'def b():\n    """Return what it is."""\n'
        'async def c():\n    """Whatever the name, however long."""\n',
    )
    output = run(tmp_path).stdout
    assert cells(output, "docstrings that begin") == ["75.0 %", "0.0 %"]
    assert cells(output, "of these with What/How/Who") == ["25.0 %", "0.0 %"]


def test_dialect_counts_docstring_words(tmp_path: Path) -> None:
    """Words of code, comments and other strings are not counted, and parts of words are not the word."""
    write(
        tmp_path, "module.py", '"""Nobody tells the tellers, believe me, said he."""\nsaid = "told"  # lies\n'
    )
    output = run(tmp_path).stdout
    assert cells(output, "dialect") == ["375.0", "0.0"]
    assert "dialect: 1 nobody, 1 tells, 1 said" in output


def test_list_names_docstrings(tmp_path: Path) -> None:
    """`--list` prints place, first line and dialect words of each docstring that begins with a question word or uses dialect."""
    write(
        tmp_path,
        "module.py",
        '"""Module."""\n\ndef f():\n    """How it works."""\ndef g():\n    """Is told.\n\n    More."""\n',
    )
    assert run("--list", tmp_path).stdout.splitlines()[-2:] == [
        "module.py:3: How it works.",
        "module.py:5: Is told. ['told']",
    ]


def test_comments_leave_directives_out(tmp_path: Path) -> None:
    """Comments for tools, docstrings and hashes in strings are no comments, and blank lines no code."""
    write(
        tmp_path,
        "module.py",
        '#!/usr/bin/env python3\n"""A docstring\n\n# of three lines."""\n\n# why\na = "# text"  # because\n'
        "b = 1  # noqa: E501\nc = (\n    1,  # type: ignore[misc]\n)\n",
    )
    output = run(tmp_path).stdout
    assert cells(output, "lines of code") == ["5", "0"]
    assert cells(output, "comments") == ["40.0", "0.0"]


def test_long_functions_and_names(tmp_path: Path) -> None:
    """The longest function is named with its place, and test names are counted by their words."""
    write(tmp_path, "module.py", "def f():\n" + "    pass\n" * 60)
    write(tmp_path, "tests/test_it.py", "def test_a_b_c_d_e_f(): pass\ndef test_a_b_c_d_e_f_g(): pass\n")
    output = run(tmp_path).stdout
    assert cells(output, "longest function") == ["61", "1"]
    assert "61 module.py:1 f" in output
    assert cells(output, "test names") == ["", "1 of 2"]


def test_check_names_exceeded_limits(tmp_path: Path) -> None:
    """Without `--check` the exit status is 0, with it 1 if a limit is exceeded, each of which is named."""
    write(tmp_path, "module.py", '"""What it tells."""\n# a\n# comment\ndef f():\n' + "    pass\n" * 60)
    assert run(tmp_path).returncode == 0
    checked = run("--check", tmp_path)
    assert (checked.returncode, checked.stderr) == (1, "exceeded: asking, dialect, function\n")
    write(tmp_path, "module.py", '"""A module."""\n# a comment\nx = 1\n')
    assert run("--check", tmp_path).returncode == 0


def test_commits_count_from_revision(tmp_path: Path) -> None:
    """Subjects are those of the checkout, or of its commits after a revision or date."""
    write(tmp_path, "module.py")
    git(tmp_path, "init", "-q")
    for subject in ("x" * 73, "short", "y" * 72):
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", subject)
    assert "over 72 characters: 1 of 3" in run(tmp_path).stdout
    assert "over 72 characters: 0 of 2" in run("--since", "HEAD~2", tmp_path).stdout
    assert "over 72 characters: 1 of 3" in run("--since", "2000-01-01", tmp_path).stdout
    assert "commit subjects" not in run(tmp_path / "module.py").stdout


def git(tree: Path, *arguments: str) -> None:
    """Run git without the machine's configuration."""
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(tree), *who, *arguments], check=True)


@pytest.mark.parametrize("text", ["def broken(:\n", "\x00"])
def test_broken_file_is_skipped(tmp_path: Path, text: str) -> None:
    """A file that is not Python is named on stderr, and the others are counted."""
    write(tmp_path, "broken.py", text)
    write(tmp_path, "module.py", "x = 1\n")
    ran = run(tmp_path)
    assert ran.returncode == 0
    assert "skipped" in ran.stderr
    assert cells(ran.stdout, "lines of code") == ["1", "0"]


def test_missing_path_is_error(tmp_path: Path) -> None:
    """A path that does not exist ends with exit status 2."""
    assert run(tmp_path / "absent").returncode == 2
