"""A new user at a terminal: the commands and files of a page as they stand there, and the shell that they are typed into."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.wheels import Index
from tests.unit.docs.pages import ROOT

from airbridge.control_plane.local.process.child import child_setup

_ELEMENT = re.compile(
    r"^(?:Save this as `(?P<path>[^`]+)`:\n\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_OWN = (".git", ".airbridge")
# What a newcomer's shell does not have: settings of this test run, of the make that started it, and of a cloud.
_UNSET = re.compile(r"(AIRBRIDGE|AIRFLOW|AWS|UV|MAKE|MFLAGS|PYTEST|VIRTUAL_ENV)")


@dataclass(frozen=True)
class Saved:
    """File that the page asks its reader to save."""

    path: str
    text: str


@dataclass(frozen=True)
class Command:
    """Command of a page; of several lines, if it has a here-document."""

    text: str

    @property
    def first_line(self) -> str:
        """Line by which the command is known."""
        return self.text.partition("\n")[0]


@dataclass(frozen=True)
class Typed:
    """Command that has ended: its exit status, and its output and errors as the terminal shows them."""

    status: int
    output: str


def elements(page: str) -> Iterator[Command | Saved]:
    """Yield the commands of a page's blocks and the files that it asks for, in the order of the page.

    Blocks in `text` are output. A block in a language of which it is not known what to do with it is an error.
    """
    for found in _ELEMENT.finditer(page):
        language, body = found["language"], found["body"]
        if language == "console":
            yield from _commands(body)
        elif language in {"bash", "sh"}:
            yield Command(body)
        elif found["path"]:
            yield Saved(found["path"], body)
        elif language not in {"text", "mermaid"}:
            yield Command(body)  # known by nobody, and so noticed


def _commands(body: str) -> Iterator[Command]:
    lines: list[str] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            if lines:
                yield Command("\n".join(lines))
            lines = [line[2:]]
        else:
            lines.append(line)
    yield Command("\n".join(lines))


def inline_commands(page: str) -> list[str]:
    """Return the commands in the text of a page, each once."""
    prose = _ELEMENT.sub("", page)
    return list(dict.fromkeys(re.findall(r"`((?:airbridge|airflow|make|[A-Z_]+=\S+) [^`\n]+)`", prose)))


@contextmanager
def checkout() -> Iterator[Path]:
    """Make a directory that has every file of the repository and no platform yet, of an own `.airbridge`."""
    # Not in /tmp: tasks could make nothing there, since the worker's own files are hidden from them.
    root = Path(tempfile.mkdtemp(prefix="airbridge-", dir="/var/tmp"))
    try:
        for path in ROOT.iterdir():
            if path.name not in _OWN:
                (root / path.name).symlink_to(path)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def packages(folder: Path) -> dict[str, str]:
    """Make a package index with the tutorial's package; return the variable with which uv, and so a newcomer, uses it."""
    wheels = Index(folder / "simple" / "humanize")
    wheels.add(
        "humanize", "4.12.3", files={"humanize/__init__.py": "def intcomma(n):\n    return f'{n:,}'\n"}
    )
    links = [f'<a href="{wheel.name}">{wheel.name}</a>' for wheel in wheels.folder.glob("*.whl")]
    (wheels.folder / "index.html").write_text(f"<html><body>{''.join(links)}</body></html>")
    return {"UV_DEFAULT_INDEX": f"file://{folder}/simple"}


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return a newcomer's environment: without a virtual environment on PATH, and with `own`."""
    kept = {name: value for name, value in os.environ.items() if not _UNSET.match(name)}
    path = [each for each in kept["PATH"].split(":") if not each.endswith("/.venv/bin")]
    return {**kept, "PATH": ":".join(path), "SHELL": "/bin/bash", **own}


class Terminal:
    """Process that reads commands or runs one: `make shell` or `make up`."""

    def __init__(self, command: str, directory: Path, own: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=directory,
            env=environment(own),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=child_setup(signal.SIGTERM),  # noqa: PLW1509 - makes only system calls
        )
        self.output = ""

    def wait_for(self, pattern: str, timeout_seconds: float) -> re.Match[str]:
        """Read until the output matches; fail if it ends or does not match in time."""
        deadline = time.monotonic() + timeout_seconds
        out = self._process.stdout
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while (found := re.search(pattern, self.output, re.DOTALL)) is None:
                left = deadline - time.monotonic()
                assert left > 0, f"no {pattern!r} within {timeout_seconds:.0f} s:\n{self.output}"
                if selector.select(left):
                    read = os.read(out.fileno(), 65536)
                    assert read, f"the output ended before {pattern!r}:\n{self.output}"
                    self.output += read.decode(errors="replace")
        return found

    def type(self, command: str, timeout_seconds: float = 60.0) -> Typed:
        """Type a command into a shell and wait for its end."""
        assert self._process.stdin is not None
        self.output, began = "", time.monotonic()
        self._process.stdin.write(f"{command}\nprintf '\\n[ended %s]\\n' $?\n".encode())
        self._process.stdin.flush()
        found = self.wait_for(r"^(.*)\n\[ended (\d+)\]\n", timeout_seconds)
        print(f"$ {command}\n{found[1]}\n({time.monotonic() - began:.1f} s)")
        return Typed(int(found[2]), found[1])

    def close(self, timeout_seconds: float = 60.0) -> int:
        """End what runs, if it has not ended, and return its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return self._kill()
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()

    def interrupt(self) -> None:
        """Press Ctrl-C: the signal goes to every process of the terminal."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)

    def _kill(self) -> int:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()
