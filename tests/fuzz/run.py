"""Coverage-guided fuzzing of one parser with atheris: ``python -m tests.fuzz.run TARGET [libFuzzer options]``; see `make fuzz`.

Ends with an error at the first input that a parser neither takes nor refuses in its own words, or that takes longer than
libFuzzer's ``-timeout``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["airbridge", "tarfile", "jwt", "msgspec"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz."""
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="airbridge-corpus-") as corpus:
        for number, seed in enumerate(target.seeds()):
            Path(corpus, f"seed-{number}").write_bytes(seed)
        atheris.Setup([sys.argv[0], corpus, *options], target.parse)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
