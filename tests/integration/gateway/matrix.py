"""The negative matrix: every caller with every token, for every action on every object, and the one answer each must get.

`expected` is the only definition of the right answers. The test sends the requests over real TLS; `summary` makes the page
docs/reference/security-matrix.md of the same table.

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

PAGE: Final = Path(__file__).parents[3] / "docs" / "reference" / "security-matrix.md"

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
    "receive": "receive through the gateway, from the queue of the caller's own pool",
    "code": "read the region's DAG code through the gateway (there is none by this digest)",
    "log": "begin to write its log through the gateway",
    "credentials": "get AWS credentials, which the caller's pool does not have from the gateway",
    "state": "report its final state",
    "xcom": "write its XCom",
    "variable": "write a variable that the policy allows",
    "connection": "read a connection that the policy allows",
    "forbidden-connection": "read a connection that the policy does not allow",
    "trigger": "trigger a DAG run that the policy does not allow",
    "hostile-state": "defer with kwargs that run code where Airflow decodes them",
    "hostile-xcom": "write an XCom that is such a value",
    "hostile-fields": "write rendered fields that are such values",
}
OBJECTS: Final = {
    "own": "a work item that the right worker holds",
    "another's": "one that a third worker holds",
    "ended": "one that the right worker held and that is settled",
    "unknown": "one that there is not",
}
EXCHANGED: Final = frozenset(ACTIONS) - {
    "renew", "claim", "heartbeat", "release", "receive", "code", "log", "credentials",
}  # fmt: skip
_BY_POLICY: Final = frozenset({"forbidden-connection", "trigger"})
HOSTILE: Final = frozenset({"hostile-state", "hostile-xcom", "hostile-fields"})
"""Actions that fail the task when its right worker sends them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The required answer, and its event in the audit trail (None: nothing was denied)."""

    said: str
    event: str | None = None

    @property
    def denied(self) -> bool:
        return self.event is not None


OK: Final = Answer("ok")
HANDSHAKE: Final = Answer("no handshake", "handshake.refused")
UNAUTHENTICATED: Final = Answer("401 forbidden", "request.refused")
NO_SCOPE: Final = Answer("403 forbidden", "request.refused")
NO_CODE: Final = Answer("404 unknown", "request.refused")
NOT_ITS_LOG: Final = Answer("403 not_holder", "request.refused")
NOT_BROKERED: Final = Answer("403 forbidden", "request.refused")
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
    if cell.action == "credentials":
        return NOT_BROKERED
    if cell.caller == "revoked":
        return REVOKED
    if cell.action in {"renew", "receive"}:
        return OK  # a caller renews only itself, and receives for its own pool: these actions have no object
    if cell.action == "code":
        return NO_CODE
    if cell.action == "log":
        return OK if cell.caller == "right" and cell.object in {"own", "ended"} else NOT_ITS_LOG
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
    if held and cell.action in HOSTILE:
        return Answer("403 body refused", "call.denied")
    if held:
        return OK
    reason = "unknown_item" if cell.object == "unknown" else "not_holder"
    if cell.caller == "right" and cell.object == "ended":
        reason = "settled"
    if cell.action in EXCHANGED:
        return Answer(f"refused: {reason}", "exchange.refused")
    # A worker that still names a task whose end it has reported gets the reason; this is no denial.
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
            "# Access matrix",
            "",
            "The gateway's response to every caller with every token, for every action on every object. Generated by",
            "`python -m tests.integration.gateway.matrix`. `tests/integration/gateway/test_matrix.py` tries every cell on a running gateway, over",
            "TLS 1.3 and Postgres, and fails if this page is out of date. It also counts the audit row of every denied cell.",
            "",
            f"{sum(counted.values())} cells: {counted[True]} denied and audited, {counted[False]} not.",
            "",
            *_legend("Caller", CALLERS),
            *_legend("Token", TOKENS),
            *_legend("Action", ACTIONS),
            *_legend("Object", OBJECTS),
            "## Responses",
            "",
            "A cell contains the response for all four objects, or for each where they differ. `ok`: done. `no handshake`: TLS closed the",
            "connection. `refused`: refused with that reason, nothing changed. `no lease`: no lease was renewed, nothing changed.",
            "`body refused`: the call is not applied, and the task is failed.",
            "",
            "| caller | token | " + " | ".join(ACTIONS) + " |",
            "| --- | --- | " + " | ".join("---" for _ in ACTIONS) + " |",
            *rows,
            "",
            "| response | cells |",
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
