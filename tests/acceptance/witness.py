"""An operator's view of a task on a running platform: `airbridge trace` as a process, and the Timeline page over HTTP."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from tests.support.platform import LocalPlatform

TASK = "work"
"""The only task of every DAG that is looked at."""

_CAUSE = re.compile(r'<p class="cause(?: trouble)?" data-code="(\w+)">(.*?)</p>', re.DOTALL)
_NOTE = re.compile(r'<p class="note">(.*?)</p>', re.DOTALL)


@dataclass(frozen=True)
class Page:
    """The head of a Timeline page."""

    code: str
    cause: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Witness:
    """An operator at a terminal, and the same one at a browser that is signed in."""

    platform: LocalPlatform
    browser: httpx.Client

    def page(self, dag_id: str) -> Page | None:
        """The Timeline page of the DAG's newest run; None while Airflow does not have it."""
        names = {"dag": dag_id, "run": self._run_of(dag_id), "task": TASK}
        if names["run"] is None:
            return None
        answer = self.browser.get("/timeline", params=names)
        found = _CAUSE.search(answer.text) if answer.status_code == 200 else None
        if found is None:
            return None
        notes = tuple(map(html.unescape, _NOTE.findall(answer.text)))
        return Page(found[1], html.unescape(found[2]), notes)

    def trace(self, dag_id: str) -> tuple[str, str]:
        """Return the two outputs of `airbridge trace`."""
        done = self.run("trace", dag_id, "latest", TASK)
        assert 0 == done.returncode, done.stderr
        return done.stdout, done.stderr

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on the platform."""
        return subprocess.run(
            [*_AIRBRIDGE, *words, "--dir", str(self.platform.directory.root)],
            env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def names(self, dag_id: str, code: str, sentence: str, timeout_seconds: float = 60.0) -> None:
        """Wait until the page gives the cause; assert that page and command have this sentence."""
        found = self._await(
            dag_id, lambda page: page.code == code and re.search(sentence, page.cause), timeout_seconds
        )
        print(f"\npage:  {found.cause}  [{found.code}]")
        lines = self.trace(dag_id)[0].splitlines()
        print(f"trace: {lines[1]}")
        assert lines[1].endswith(f"  [{code}]")
        assert re.search(sentence, lines[1].removesuffix(f"  [{code}]")), lines[1]

    def notes(self, dag_id: str, code: str, sentence: str, timeout_seconds: float = 90.0) -> None:
        """Do as `names` for the notes beside the cause, or for the cause if it has become the note's."""

        def noted(page: Page) -> bool:
            texts = (*page.notes, *([page.cause] if page.code == code else []))
            return any(re.search(sentence, text) for text in texts)

        found = self._await(dag_id, noted, timeout_seconds)
        print(f"\npage:  {found.notes}")
        lines = self.trace(dag_id)[0].splitlines()
        said = [lines[1], *(line for line in lines if line.startswith("note: "))]
        print("trace:", *said)
        assert [line for line in said if re.search(sentence, line) and line.endswith(f"[{code}]")], said

    def _await(self, dag_id: str, right: Callable[[Page], object], timeout_seconds: float) -> Page:
        deadline, seen = time.monotonic() + timeout_seconds, None
        while time.monotonic() < deadline:
            seen = self.page(dag_id)
            if seen is not None and right(seen):
                return seen
            time.sleep(0.5)
        print(self.trace(dag_id)[0])
        raise AssertionError(f"after {timeout_seconds:.0f} s the page of {dag_id} says {seen}")

    def _run_of(self, dag_id: str) -> str | None:
        newest = "SELECT run_id FROM dag_run WHERE dag_id = %s ORDER BY id DESC LIMIT 1"
        return next((str(row[0]) for row in self.platform.query(newest, dag_id)), None)


_AIRBRIDGE = (sys.executable, "-m", "airbridge.control_plane.cli")


@contextmanager
def watching(platform: LocalPlatform) -> Iterator[Witness]:
    """Sign in as Airflow's UI does, and watch."""
    url = platform.state.ui_url
    token = (
        httpx.get(f"{url}/auth/token", trust_env=False, timeout=30).raise_for_status().json()["access_token"]
    )
    with httpx.Client(
        base_url=f"{url}/airbridge", headers={"Origin": url}, timeout=30, trust_env=False
    ) as browser:
        browser.post("/session", headers={"Authorization": f"Bearer {token}"}).raise_for_status()
        yield Witness(platform, browser)
