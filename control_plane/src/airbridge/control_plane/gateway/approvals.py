"""Four eyes (``[airbridge] four_eyes``): an action becomes a proposal that another owner's token approves.

Independent is a token of another owner, whose line of parents begins with another token. Owners below one (``ann/ci``) are
the same person's: a token makes children under its own name only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane import audit_events
from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.api import documents, operator_endpoint
from airbridge.control_plane.gateway.api.actions import ACTIONS, Action, Payload, is_own
from airbridge.control_plane.gateway.auth.authentication import Operator
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.identity import proposals, tokens
from airbridge.executor.ledger.identity.models import ProposalRow
from airbridge.executor.setting_values import FourEyes

log = structlog.get_logger()

# Of one owner, so that no token fills the table, or hides a proposal among others.
MOST_OPEN: Final = 50
EXPIRY_INTERVAL_SECONDS: Final = 15.0
BREAK_GLASS: Final = "break_glass:use"


@dataclass(frozen=True, slots=True)
class Approvals:
    """Proposals, and which actions become one. Takes an open session and never commits."""

    four_eyes: frozenset[FourEyes]
    lifetime_seconds: float
    #: Called when one person did what needs two.
    on_break_glass: Callable[[str], None]

    def perform(
        self, session: Any, operator: Operator, name: str, asked: Payload, *, break_glass: bool = False
    ) -> dict[str, Any]:
        """Do the action, or propose it; the answer then says so. Raises `Refused` if no scope allows it."""
        action = ACTIONS[name]
        action.permit(session, operator, asked)
        if action.kind not in self.four_eyes or is_own(session, operator, name, asked):
            return action.run(session, operator, asked)
        if break_glass:
            self._break_glass(session, operator, name, action, asked)
            return action.run(session, operator, asked)
        return operator_endpoint.Accepted(
            proposal=documents.proposal(self._propose(session, operator, name, asked))
        )

    def approve(self, session: Any, approver: Operator, proposal_id: str) -> dict[str, Any]:
        """Approve a proposal, and have its effect in the proposer's name. Raises `Refused`."""
        row = _open(session, proposal_id)
        action = ACTIONS[row.action]
        action.permit(session, approver, row.payload)
        _check_independent(session, row, approver)
        proposer = _proposer(session, row)
        action.permit(session, proposer, row.payload)
        result: dict[str, Any] = {}
        if not action.collected:
            # Before the decision: a change of policy looks up the one that was approved before it.
            result = action.run(session, proposer, row.payload)
            row.done_at = clock.now(session)
        proposals.decide(session, row, "approved", approver.actor, approver.token_id)
        _record(session, "proposal.approved", "granted", approver, row)
        return {"proposal": documents.proposal(row), "result": result}

    def refuse(self, session: Any, operator: Operator, proposal_id: str) -> dict[str, Any]:
        """Refuse a proposal, or withdraw one's own. Raises `Refused`."""
        row = _open(session, proposal_id)
        if row.token_id != operator.token_id:
            ACTIONS[row.action].permit(session, operator, row.payload)
        proposals.decide(session, row, "refused", operator.actor, operator.token_id)
        _record(session, "proposal.refused", "denied", operator, row)
        return {"proposal": documents.proposal(row)}

    def collect(self, session: Any, operator: Operator, proposal_id: str) -> dict[str, Any]:
        """Return the result of an approved proposal to its proposer, once. Raises `Refused`."""
        row = _known(session, proposal_id)
        action = ACTIONS[row.action]
        if row.token_id != operator.token_id:
            raise _forbidden("a token is collected with the token that proposed it")
        if row.status != "approved" or not action.collected or row.done_at is not None:
            raise _conflict(f"proposal {row.id} is {'collected' if row.done_at else row.status}")
        if row.expires_at <= clock.now(session):
            raise _conflict(f"proposal {row.id} was not collected in time; propose again")
        action.permit(session, operator, row.payload)
        row.done_at = clock.now(session)
        _record(session, "proposal.collected", "changed", operator, row)
        return action.run(session, operator, row.payload)

    def _break_glass(
        self, session: Any, operator: Operator, name: str, action: Action, asked: Payload
    ) -> None:
        if not action.emergency:
            raise _forbidden(f"{name} cannot be done by one person: it gives rights, and takes none away")
        operator.require(BREAK_GLASS)
        audit_events.record(
            session,
            "break_glass.used",
            "changed",
            operator.actor,
            rule=f"scope {BREAK_GLASS}",
            address=operator.address,
            log_level=logging.ERROR,
            token=operator.token_id,
            action=name,
            **{f"of_{key}": value for key, value in asked.items()},
        )
        self.on_break_glass(name)

    def _propose(self, session: Any, operator: Operator, name: str, asked: Payload) -> ProposalRow:
        if proposals.count_open(session, operator.owner) >= MOST_OPEN:
            person = proposals.person(operator.owner)
            raise _conflict(f"{person} has {MOST_OPEN} open proposals; have them approved or refused first")
        row = proposals.create(
            session,
            action=name,
            payload=dict(asked),
            owner=operator.owner,
            token_id=operator.token_id,
            address=operator.address,
            ttl_seconds=self.lifetime_seconds,
        )
        _record(session, "proposal.created", "changed", operator, row)
        return row

    async def run(self) -> None:
        """Mark proposals whose time is over, until cancelled."""
        while self.four_eyes:
            await asyncio.to_thread(expire)
            await asyncio.sleep(EXPIRY_INTERVAL_SECONDS)


def expire() -> None:
    """Mark proposals whose time is over, and record it. Their time alone decides, not this mark."""
    actor = f"gateway:{socket.gethostname()}:{os.getpid()}"
    try:
        with unit() as work:
            for row in proposals.expire(work.session):
                audit_events.record(
                    work.session,
                    "proposal.expired",
                    "denied",
                    actor,
                    rule="four eyes",
                    proposal=row.id,
                    action=row.action,
                    owner=row.owner,
                )
    except sql.SQLAlchemyError as error:
        log.warning("proposals.expiry_failed", exc_info=error)


def _known(session: Any, proposal_id: str) -> ProposalRow:
    row = proposals.lock(session, proposal_id)
    if row is None:
        raise operator_endpoint.missing(f"there is no proposal {proposal_id[:64]!r}")
    return row


def _open(session: Any, proposal_id: str) -> ProposalRow:
    row = _known(session, proposal_id)
    if row.status != "proposed":
        raise _conflict(f"proposal {row.id} is {row.status}")
    if row.expires_at <= clock.now(session):
        raise _conflict(f"proposal {row.id} is expired; propose again")
    return row


def _check_independent(session: Any, row: ProposalRow, approver: Operator) -> None:
    proposer = proposals.person(row.owner)
    if proposer == proposals.person(approver.owner):
        raise _forbidden(f"{proposer} proposed this; another owner must approve it")
    if tokens.root_of(session, row.token_id) == tokens.root_of(session, approver.token_id):
        raise _forbidden(
            "this token and the proposer's descend from the same token; another one must approve it"
        )


def _proposer(session: Any, row: ProposalRow) -> Operator:
    """Return the proposer, whose token may have expired meanwhile, but not have been revoked."""
    token = tokens.get(session, row.token_id)
    if token is None or token.revoked_at is not None:
        raise _conflict(f"the token that made proposal {row.id} was revoked; propose again")
    return Operator(row.owner, row.token_id, Scopes.parse(token.scopes), row.address, token.expires_at)


def _record(session: Any, event: str, verdict: Any, operator: Operator, row: ProposalRow) -> None:
    audit_events.record(
        session,
        event,
        verdict,
        operator.actor,
        rule="four eyes",
        address=operator.address,
        token=operator.token_id,
        proposal=row.id,
        action=row.action,
        proposer=row.owner,
        proposer_token=row.token_id,
    )


def _forbidden(detail: str) -> Refused:
    return Refused(403, RefusalReason.FORBIDDEN, detail, rule="four eyes")


def _conflict(detail: str) -> Refused:
    return Refused(409, RefusalReason.FORBIDDEN, detail, rule="four eyes")
