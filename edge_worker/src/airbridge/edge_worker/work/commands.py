"""Commands of the control plane, which come with the heartbeat's response."""

from __future__ import annotations

import structlog

from airbridge.core.protocol import CancelCommand, TrustBundle
from airbridge.edge_worker.exceptions import GatewayError, IdentityError
from airbridge.edge_worker.gateway_client.identity import Identity
from airbridge.edge_worker.gateway_client.retry import RetryDecision
from airbridge.edge_worker.journal.rows import Key
from airbridge.edge_worker.lifecycle import ExitCode, Lifecycle
from airbridge.edge_worker.work.attempts import Attempts, Stop
from airbridge.edge_worker.work.launcher import Launcher

log = structlog.get_logger(__name__)


class Commands:
    """Implementation of `heartbeat.CommandHandler`."""

    def __init__(
        self, lifecycle: Lifecycle, attempts: Attempts, launcher: Launcher, identity: Identity
    ) -> None:
        self._lifecycle = lifecycle
        self._attempts = attempts
        self._launcher = launcher
        self._identity = identity

    def cancel(self, at: Key, command: CancelCommand) -> None:
        """See `CommandHandler.cancel`."""
        attempt = self._attempts.get(at)
        # A recorded final state is left alone: the gateway's answer to it decides.
        if attempt is None or attempt.finished:
            return
        self._launcher.stop(attempt, Stop(command.reason, command.detail, report=False))

    def drain_requested(self, detail: str) -> None:
        """See `CommandHandler.drain_requested`."""
        self._lifecycle.drain(detail)

    def resume(self) -> None:
        """See `CommandHandler.resume`."""
        self._lifecycle.resume()

    def renew(self) -> None:
        """See `CommandHandler.renew`."""
        self._identity.renew_soon()

    def trust(self, trust: TrustBundle) -> None:
        """See `CommandHandler.trust`."""
        try:
            self._identity.trust(trust)
        except IdentityError as error:
            log.error("identity.trust_unusable", detail=str(error))  # noqa: TRY400 - the traceback adds nothing

    def identity_refused(self, decision: RetryDecision, error: GatewayError) -> None:
        """See `CommandHandler.identity_refused`."""
        refused(self._lifecycle, self._identity, decision, error)


def refused(lifecycle: Lifecycle, identity: Identity, decision: RetryDecision, error: GatewayError) -> None:
    """Handle a request that was refused for the worker's identity: stop if it is revoked, renew otherwise."""
    if decision is RetryDecision.REVOKED:
        lifecycle.hard_stop(ExitCode.NO_IDENTITY, f"this worker is revoked: {error}")
    else:
        identity.renew_soon()
