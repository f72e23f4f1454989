"""The policy in force: read again whenever its file changes, without a restart. A file that is wrong changes nothing."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.policy import Access, Policy, Ruling, TaskFacts
from airbridge.control_plane.rules import OwnOnly, RulePolicy
from airbridge.executor.exceptions import ConfigurationError
from airbridge.executor.ledger import audit

log = structlog.get_logger()

LOOK_SECONDS: Final = 2.0


class LivePolicy:
    """A `Policy` that follows its file. Without a file nothing beyond a task's own is allowed, for good."""

    def __init__(self, path: Path | None) -> None:
        """Read the file. Raises `ConfigurationError`: a gateway does not start under a policy it cannot read."""
        self._path = path
        self._refused: bytes | None = None
        self._rules: RulePolicy | None = RulePolicy.read(path) if path is not None else None
        self._policy: Policy = self._rules or OwnOnly()

    @property
    def rules(self) -> RulePolicy | None:
        """The rules in force, if there is a file."""
        return self._rules

    def judge(self, task: TaskFacts, access: Access) -> Ruling:
        """See `Policy.judge`."""
        return self._policy.judge(task, access)

    async def follow(self) -> None:
        """Look at the file until cancelled."""
        await asyncio.to_thread(self._note, "policy.loaded", self._describe(None))
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Take up the file if it has changed; say so in the log and in the audit trail."""
        if self._path is None:
            return
        before = self._rules
        try:
            read = RulePolicy.read(self._path)
        except ConfigurationError as error:
            self._refuse(str(error))
            return
        self._refused = None
        if before is not None and read.digest == before.digest:
            return
        self._rules = self._policy = read
        log.info("policy.changed", file=str(self._path), digest=read.digest)
        self._note("policy.changed", self._describe(before))

    def _refuse(self, why: str) -> None:
        """Say once that the file cannot be used: the rules before it stay in force."""
        if self._refused == why.encode():
            return
        self._refused = why.encode()
        log.error("policy.refused", file=str(self._path), why=why)
        self._note("policy.refused", {"file": str(self._path), "why": why}, verdict="denied")

    def _describe(self, before: RulePolicy | None) -> dict[str, Any]:
        rules = self._rules
        if rules is None:
            return {"file": None}
        was = {rule.name: rule for rule in before.rules} if before else {}
        now = {rule.name: rule for rule in rules.rules}
        return {
            "file": rules.source,
            "digest": rules.digest,
            "digest_before": before.digest if before else None,
            "rules_added": sorted(now.keys() - was.keys()),
            "rules_removed": sorted(was.keys() - now.keys()),
            "rules_changed": sorted(name for name in now.keys() & was.keys() if now[name] != was[name]),
        }

    def _note(self, event: str, detail: dict[str, Any], verdict: audit.Verdict = "changed") -> None:
        actor = f"gateway:{socket.gethostname()}:{os.getpid()}"
        try:
            with unit() as work:
                audit.record(work.session, event, verdict, actor, rule="policy_file", **detail)
        except sql.SQLAlchemyError as error:
            log.warning("audit.unwritten", audit_event=event, exc_info=error)
