"""The negative matrix: every caller with every token, for every action on every object, and the one answer each must get.

`expected` is the only place that says what must happen. The test asks the gateway over real TLS; `summary` makes the page
docs/security-matrix.md of the same table.

Run: python -m tests.integration.gateway.matrix   (writes the page)
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[3] / "docs" / "security-matrix.md"

CALLERS: Final = {
    "none": "no certificate",
    "other-ca": "the right name, signed by another CA",
    "expired": "the right name, our CA, out of date",
    "revoked": "a worker that was revoked",
    "other-region": "a worker of another region",
    "other-pool": "a worker of another pool",
    "other-worker": "another worker of the same pool",
    "right": "the worker that holds the work item",
}
TOKENS: Final = {
    "none": "no token",
    "forged": "a token signed with a guessed secret (HS256)",
    "alg-none": "an unsigned token (`alg: none`)",
    "wrong-key": "a token signed with another Ed25519 key",
    "expired": "its own token, out of date",
    "other-cert": "a good token, bound to another worker's certificate",
    "too-narrow": "its own token without a scope for the action",
    "right": "its own token",
}
ACTIONS: Final = {
    "renew": "renew the certificate",
    "claim": "claim a work item",
    "heartbeat": "renew its lease",
    "release": "give it back",
    "state": "report its final state",
    "xcom": "write its XCom",
    "variable": "write a variable that the policy allows",
    "connection": "read a connection that the policy allows",
    "forbidden-connection": "read a connection that the policy does not allow",
    "trigger": "trigger a DAG run that the policy does not allow",
}
OBJECTS: Final = {
    "own": "a work item that the right worker holds",
    "another's": "one that a third worker holds",
    "ended": "one that the right worker held and that is settled",
    "unknown": "one that there is not",
}
EXCHANGED: Final = frozenset(ACTIONS) - {"renew", "claim", "heartbeat", "release"}
_BY_POLICY: Final = frozenset({"forbidden-connection", "trigger"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What must happen, and the event of the audit trail that tells of it (None: nothing was denied)."""

    said: str
    event: str | None = None

    @property
    def denied(self) -> bool:
        return self.event is not None


OK: Final = Answer("ok")
HANDSHAKE: Final = Answer("no handshake", "handshake.refused")
UNAUTHENTICATED: Final = Answer("401 forbidden", "request.refused")
NO_SCOPE: Final = Answer("403 forbidden", "request.refused")
REVOKED: Final = Answer("403 revoked", "request.refused")


@dataclass(frozen=True, slots=True)
class Cell:
    caller: str
    token: str
    action: str
    object: str


def cells() -> Iterator[Cell]:
    """Every cell."""
    for each in product(CALLERS, TOKENS, ACTIONS, OBJECTS):
        yield Cell(*each)


def expected(cell: Cell) -> Answer:
    """The one table."""
    if cell.caller in {"other-ca", "expired"}:
        return HANDSHAKE
    if cell.caller == "none":
        return UNAUTHENTICATED
    if cell.token == "too-narrow":
        return NO_SCOPE
    if cell.token != "right":
        return UNAUTHENTICATED
    if cell.caller == "revoked":
        return REVOKED
    if cell.action == "renew":
        return OK  # whoever is authenticated renews itself, and nothing else: there is no object in it
    return _claim(cell) if cell.action == "claim" else _under_lease(cell)


def _claim(cell: Cell) -> Answer:
    reason = {"other-region": "wrong_region", "other-pool": "wrong_pool"}.get(cell.caller)
    if reason is None and cell.caller == "right" and cell.object == "own":
        return OK
    if reason is None:
        taken = {"own": "already_claimed", "another's": "already_claimed", "ended": "settled"}
        reason = taken.get(cell.object, "unknown_item")
    return Answer(f"refused: {reason}", "claim.refused")


def _under_lease(cell: Cell) -> Answer:
    held = cell.caller == "right" and cell.object == "own"
    if held and cell.action in _BY_POLICY:
        return Answer("403 forbidden by policy", "call.denied")
    if held:
        return OK
    reason = "unknown_item" if cell.object == "unknown" else "not_holder"
    if cell.caller == "right" and cell.object == "ended":
        reason = "settled"
    if cell.action in EXCHANGED:
        return Answer(f"refused: {reason}", "exchange.refused")
    # Who has reported the end of its own task and still names it is told so; nothing is denied to anybody.
    event = None if reason == "settled" else "lease.refused"
    return Answer(f"no lease: {reason}", event)


def summary() -> str:
    """The page: one table, a row for each caller and token, a column for each action; objects stand in the cells."""
    rows = [
        f"| {caller} | {token} | " + " | ".join(_cell(caller, token, action) for action in ACTIONS) + " |"
        for caller, token in product(CALLERS, TOKENS)
    ]
    counted = Counter(expected(cell).denied for cell in cells())
    answers = Counter(expected(cell).said for cell in cells())
    return "\n".join(
        [
            "# The negative matrix",
            "",
            "Made by `python -m tests.integration.gateway.matrix` of the table that",
            "`tests/integration/gateway/test_matrix.py` holds a running gateway to, cell by cell, over real TLS 1.3 and Postgres; the same",
            "test fails if this page is not what the table says. Every denied cell is also counted in the audit trail.",
            "",
            f"{sum(counted.values())} cells: {counted[True]} denied and audited, {counted[False]} not.",
            "",
            *_legend("Caller", CALLERS),
            *_legend("Token", TOKENS),
            *_legend("Action", ACTIONS),
            *_legend("Object", OBJECTS),
            "## Answers",
            "",
            "A cell gives the answer for all four objects, or for each where they differ. `ok`: it was done. `no handshake`: TLS ended the",
            "connection. `refused`: answered with that reason, nothing changed. `no lease`: answered, nothing changed.",
            "",
            "| caller | token | " + " | ".join(ACTIONS) + " |",
            "| --- | --- | " + " | ".join("---" for _ in ACTIONS) + " |",
            *rows,
            "",
            "| answer | cells |",
            "| --- | --- |",
            *(f"| {said} | {count} |" for said, count in answers.most_common()),
            "",
        ]
    )


def _cell(caller: str, token: str, action: str) -> str:
    by_object = {each: expected(Cell(caller, token, action, each)).said for each in OBJECTS}
    if len(set(by_object.values())) == 1:
        return by_object["own"]
    return "; ".join(f"{name}: {said}" for name, said in by_object.items())


def _legend(what: str, words: dict[str, str]) -> list[str]:
    lines = [f"| {what.lower()} | meaning |", "| --- | --- |"]
    return [*lines, *(f"| {word} | {meaning} |" for word, meaning in words.items()), ""]


if __name__ == "__main__":
    PAGE.write_text(summary())
    sys.stdout.write(f"{PAGE}\n")
