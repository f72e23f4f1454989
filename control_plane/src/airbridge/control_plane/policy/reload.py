"""Policy in force: reloaded when its file changes, without a restart. A malformed file changes nothing."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.policy.decisions import Access, Policy, Ruling, TaskFacts
from airbridge.control_plane.policy.rules import OwnOnly, RulePolicy
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.ledger import audit

log = structlog.get_logger()

POLL_SECONDS: Final = 2.0


class ReloadedPolicy:
    """`Policy` that reloads its file. Without a file, tasks have access only to their own resources."""

    #: Setting that decides where the policy is, for the audit trail.
    rule = "policy_file"

    def __init__(self, path: Path | None) -> None:
        """Read the file. Raises `ConfigurationError`: a gateway must not start with an unreadable policy."""
        self._path = path
        self._refused: bytes | None = None
        self._rules: RulePolicy | None = RulePolicy.read(path) if path is not None else None
        self._policy: Policy = self._rules or OwnOnly()

    @property
    def rules(self) -> RulePolicy | None:
        """Rules in force, if there is a file."""
        return self._rules

    def judge(self, task: TaskFacts, access: Access) -> Ruling:
        """Return the decision on an access; see `Policy.judge`."""
        return self._policy.judge(task, access)

    async def run(self) -> None:
        """Poll the file until cancelled."""
        await asyncio.to_thread(self._record, "policy.loaded", self._describe(None))
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Reload the file if it has changed; log and audit the change."""
        before = self._rules
        try:
            read = self._read()
        except ConfigurationError as error:
            self._refuse(str(error))
            return
        self._refused = None
        if read is None or (before is not None and read.digest == before.digest):
            return
        self._rules = self._policy = read
        log.info("policy.changed", file=read.source, digest=read.digest)
        self._record("policy.changed", self._describe(before))

    def _read(self) -> RulePolicy | None:
        """Return the rules of this moment; None without any. Raises `ConfigurationError`."""
        return RulePolicy.read(self._path) if self._path is not None else None

    def _refuse(self, why: str) -> None:
        """Log and audit, once per error, that the file is malformed; the previous rules stay in force."""
        if self._refused == why.encode():
            return
        self._refused = why.encode()
        log.error("policy.refused", file=str(self._path), why=why)
        self._record("policy.refused", {"file": str(self._path), "why": why}, verdict="denied")

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

    def _record(self, event: str, detail: dict[str, Any], verdict: audit.Verdict = "changed") -> None:
        actor = f"gateway:{socket.gethostname()}:{os.getpid()}"
        try:
            with unit() as work:
                audit.record(work.session, event, verdict, actor, rule=self.rule, **detail)
        except sql.SQLAlchemyError as error:
            log.warning("audit.write_failed", audit_event=event, exc_info=error)
