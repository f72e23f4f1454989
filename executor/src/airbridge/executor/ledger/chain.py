"""The hash chain over the audit trail: how a link is made, and how a chain is checked. Pure: no database.

``hash(n) = SHA-256(hash(n - 1) || canonical JSON of {"seq": n, ...the row})``, hex, beginning at `START`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Self


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One link: its number, from 1, and its hash."""

    seq: int
    hash: str


START: Final = ChainLink(0, "0" * 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Content of an audit row."""

    id: int
    at: datetime
    event: str
    verdict: str
    actor: str
    address: str | None
    rule: str | None
    region: str | None
    worker_id: str | None
    item_id: str | None
    ti_id: str | None
    epoch: int | None
    trace_id: str | None
    detail: Any

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, with the time in UTC to the microsecond."""
        return {**asdict(self), "at": self.at.astimezone(UTC).isoformat(timespec="microseconds")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**{**data, "at": datetime.fromisoformat(data["at"])})


@dataclass(frozen=True, slots=True)
class Sealed:
    """A link and the row that it seals; `entry` is None if that row is gone."""

    link: ChainLink
    audit_id: int
    entry: Entry | None


class Fault(StrEnum):
    """Kind of damage to a chain."""

    # The row, or its place in the order, is not the one that was sealed.
    ALTERED = "altered"
    # The link is there and its row is gone.
    ROW_DELETED = "row_deleted"
    # Numbers are missing in the chain.
    LINK_DELETED = "link_deleted"
    # The chain ends before a link that was written down.
    TRUNCATED = "truncated"
    # A link is not the one that was written down: the chain was made anew from there or before.
    REWRITTEN = "rewritten"


@dataclass(frozen=True, slots=True)
class ChainFinding:
    """One fault, at a link."""

    fault: Fault
    seq: int
    detail: str


def links(end: ChainLink, entries: Iterable[Entry]) -> Iterator[ChainLink]:
    """Yield the links that continue a chain over these entries."""
    for entry in entries:
        end = following(end, entry)
        yield end


def following(before: ChainLink, entry: Entry) -> ChainLink:
    """Return the link after `before` that seals `entry`."""
    seq = before.seq + 1
    content = json.dumps(
        {"seq": seq, **entry.to_json()}, sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return ChainLink(seq, hashlib.sha256(before.hash.encode() + content.encode()).hexdigest())


class Checker:
    """Checks a chain that is read in parts, in the order of its links."""

    def __init__(self, anchors: Sequence[ChainLink] = ()) -> None:
        self._anchors: dict[int, str] = {each.seq: each.hash for each in anchors}
        self._end = START
        self.findings: list[ChainFinding] = []

    @property
    def end(self) -> ChainLink:
        """The last link that was read."""
        return self._end

    def read(self, part: Iterable[Sealed]) -> None:
        """Check the next links."""
        for each in part:
            self._gap(each.link)
            self._content(each)
            self._anchor(each.link)
            self._end = each.link

    def finish(self) -> list[ChainFinding]:
        """Return everything that was found, the end's absence included."""
        beyond = [seq for seq in self._anchors if seq > self._end.seq]
        if beyond:
            missing = f"links {self._end.seq + 1} to {max(beyond)} are missing"
            text = f"the chain ends at link {self._end.seq}; {missing}: the last was written down elsewhere"
            self.findings.append(ChainFinding(Fault.TRUNCATED, self._end.seq, text))
        return self.findings

    def _gap(self, link: ChainLink) -> None:
        expected = self._end.seq + 1
        if link.seq != expected:
            text = f"links {expected} to {link.seq - 1} are missing"
            self.findings.append(ChainFinding(Fault.LINK_DELETED, expected, text))
            # The rest is judged by itself: the hash before the gap is not known.
            self._end = ChainLink(link.seq - 1, "")

    def _content(self, each: Sealed) -> None:
        if each.entry is None:
            text = f"audit row {each.audit_id} is gone"
            self.findings.append(ChainFinding(Fault.ROW_DELETED, each.link.seq, text))
        elif self._end.hash and following(self._end, each.entry).hash != each.link.hash:
            text = (
                f"audit row {each.audit_id} ({each.entry.event}, {each.entry.actor}) is not what was sealed"
            )
            self.findings.append(ChainFinding(Fault.ALTERED, each.link.seq, text))

    def _anchor(self, link: ChainLink) -> None:
        known = self._anchors.get(link.seq)
        if known is not None and known != link.hash:
            text = f"its hash is {link.hash[:12]}..., and {known[:12]}... was written down elsewhere"
            self.findings.append(ChainFinding(Fault.REWRITTEN, link.seq, text))
