"""Part of a drawing's time axis that is shown, and the steps to others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Seconds of the shortest part.
SHORTEST: Final = 0.02
_TEXT: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)-(\d{1,9}(?:\.\d{1,3})?)")


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds from the start of the whole."""

    begin: float
    end: float

    def __str__(self) -> str:
        """Return it as a parameter of an address: ``12.5-15``."""
        return "-".join(f"{at:.3f}".rstrip("0").rstrip(".") for at in (self.begin, self.end))

    @property
    def seconds(self) -> float:
        """Length."""
        return self.end - self.begin

    def inside(self, whole: float) -> Window | None:
        """Return the part of it that lies in a whole of so many seconds; None for nothing, or all."""
        begin, end = self.begin, min(self.end, whole)
        if end - begin < SHORTEST * 0.99 or (begin <= 0 and end >= whole):
            return None
        return Window(begin, end)

    def around(self, whole: float, margin: float = 0.05) -> Window:
        """Return it with a margin on both sides, and no shorter than a window may be."""
        extra = max(self.seconds * margin, (SHORTEST - self.seconds) / 2)
        found = Window(max(0.0, self.begin - extra), min(whole, self.end + extra))
        if found.seconds >= SHORTEST:
            return found
        return self._fitted(found.begin, SHORTEST, whole) or Window(0.0, whole)

    def scaled(self, factor: float, whole: float) -> Window | None:
        """Return a window `factor` times as long with the same middle; None once it is the whole."""
        return self._fitted(self.begin - self.seconds * (factor - 1) / 2, self.seconds * factor, whole)

    def moved(self, share: float, whole: float) -> Window | None:
        """Return the window that is `share` of its length later; None if there is nothing more that way."""
        found = self._fitted(self.begin + self.seconds * share, self.seconds, whole)
        return None if found is None or str(found) == str(self) else found

    @staticmethod
    def _fitted(begin: float, seconds: float, whole: float) -> Window | None:
        seconds = max(seconds, SHORTEST)
        if seconds >= whole:
            return None
        begin = min(max(0.0, begin), whole - seconds)
        return Window(begin, begin + seconds)


def parse(text: str | None) -> Window | None:
    """Return the window of an address's parameter; None for anything else."""
    match = _TEXT.fullmatch(text or "")
    if match is None:
        return None
    begin, end = float(match[1]), float(match[2])
    return Window(begin, end) if begin < end else None
