"""The tutorial's commands: each `$` line of a `console` block of docs/tutorials/first-deploy.md, with what it prints."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/tutorials/first-deploy.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Step:
    """A command, and the lines that it is said to print."""

    command: str
    prints: tuple[str, ...]

    def missing(self, output: str) -> list[str]:
        """Return the lines that were not printed; `...` in a line stands for anything."""
        text = " ".join(_COLOURS.sub("", output).split())
        patterns = {
            line: r".*?".join(re.escape(part) for part in " ".join(line.split()).split("..."))
            for line in self.prints
        }
        return [line for line, pattern in patterns.items() if not re.search(pattern, text)]


def steps(page: str) -> Iterator[Step]:
    """Yield the steps of a page in their order."""
    for block in _BLOCK.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *prints = part.strip("\n").split("\n")
            yield Step(command, tuple(line for line in prints if line.strip() not in {"", "..."}))


def follow(folder: Path, environ: Mapping[str, str], note: Callable[[str], None]) -> list[str]:
    """Run the tutorial's commands as they stand; return what each did not print. RuntimeError with the output of one that fails."""
    wrong = []
    for step in steps(PAGE.read_text()):
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=folder,
            env=dict(environ),
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"{step.command}: exit status {done.returncode}\n{output[-4000:]}")
        wrong += [f"{step.command}: does not print {line!r}" for line in step.missing(output)]
        note(f"$ {step.command}: {time.monotonic() - began:.0f} s")
    return wrong
