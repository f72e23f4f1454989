"""The tutorial's commands: each `$` line of a `console` block of docs/tutorials/first-deploy.md, with what it prints."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/tutorials/first-deploy.md"
_SECTION = re.compile(r"^## (\d+)\. ", re.MULTILINE)
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# The names are this terminal's alone: it has a mount namespace of its own. What a command exports, and where it went, stays.
_TERMINAL = """
mount --bind "$1" /etc/hosts || exit 125
trap 'env -0 > "$2"; pwd > "$3"' EXIT
eval "$4"
"""


@dataclass(frozen=True)
class Step:
    """A command of a section, and the lines that it is said to print."""

    section: int
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
    """Yield the steps of a page in their order. What stands before the first numbered section is section 0."""
    parts = _SECTION.split(page)
    sections = [("0", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
    for number, text in sections:
        for block in _BLOCK.findall(text):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, prints = _split(part.strip("\n").split("\n"))
                yield Step(int(number), command, prints)


def _split(lines: list[str]) -> tuple[str, tuple[str, ...]]:
    """Return a command, which goes on after a line that ends with a backslash, and what it prints."""
    end = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
    prints = (line for line in lines[end + 1 :] if line.strip() not in {"", "..."})
    return "\n".join(lines[: end + 1]), tuple(prints)


@dataclass
class Terminal:
    """A person's terminal, in which the tutorial's commands run one after another.

    `hosts` gives names addresses of this machine, as the DNS and a VPN do for that person. `after` is called after each command.
    """

    folder: Path
    environ: dict[str, str]
    files: Path
    note: Callable[[str], None]
    hosts: dict[str, str] = field(default_factory=dict)
    after: Callable[[], None] = lambda: None

    def follow(self, sections: Collection[int]) -> list[str]:
        """Run the commands of sections as they stand; return what each did not print. RuntimeError with the output of one that fails."""
        wrong = []
        for step in steps(PAGE.read_text()):
            if step.section not in sections:
                continue
            began = time.monotonic()
            output = self.run(step.command)
            wrong += [f"{step.command}: does not print {line!r}" for line in step.missing(output)]
            self.note(f"$ {step.command}: {time.monotonic() - began:.0f} s")
            self.after()
        return wrong

    def run(self, command: str) -> str:
        """Run a command; return what it printed. RuntimeError with that if it fails."""
        names, variables, place = (self.files / name for name in ("hosts", "environ", "directory"))
        lines = [f"{address} {name}" for name, address in self.hosts.items()]
        names.write_text(Path("/etc/hosts").read_text() + "\n" + "\n".join(lines) + "\n")
        words = ["unshare", "--mount", "bash", "-c", _TERMINAL, "terminal", names, variables, place, command]
        done = subprocess.run(
            words, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"{command}: exit status {done.returncode}\n{output[-4000:]}")
        pairs = (each.partition("=") for each in variables.read_text().split("\0") if each)
        self.environ = {name: value for name, _, value in pairs}
        self.folder = Path(place.read_text().strip())
        return output
