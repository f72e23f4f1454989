"""Policy that two operators approved, from the ledger (``[airbridge] four_eyes`` with ``policy``)."""

from __future__ import annotations

from typing import Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.policy.reload import ReloadedPolicy
from airbridge.control_plane.policy.rules import RulePolicy
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.ledger.identity import proposals
from airbridge.executor.setting_values import FourEyes
from airbridge.executor.settings import Settings

log = structlog.get_logger()

# Name of the action that proposes one.
CHANGE_POLICY: Final = "policy.change"


class ApprovedPolicy(ReloadedPolicy):
    """Last approved policy. Until one is approved, tasks have access only to their own resources."""

    rule = "four_eyes"

    def __init__(self) -> None:
        super().__init__(None)

    def _read(self) -> RulePolicy | None:
        try:
            with unit() as work:
                row = proposals.last_approved(work.session, CHANGE_POLICY)
                if row is None:
                    return None
                return RulePolicy.parse(row.payload["text"].encode(), f"proposal {row.id}")
        except sql.SQLAlchemyError as error:
            raise ConfigurationError(f"the approved policy cannot be read: {type(error).__name__}") from error


def policy_of(settings: Settings) -> ReloadedPolicy:
    """Return the policy of a deployment: approved by two, or a file."""
    if FourEyes.POLICY not in (settings.four_eyes or ()):
        return ReloadedPolicy(settings.policy_file)
    if settings.policy_file is not None:
        log.warning("policy.file_ignored", file=str(settings.policy_file), why="four_eyes has 'policy'")
    return ApprovedPolicy()
