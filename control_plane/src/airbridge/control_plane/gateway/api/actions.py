"""Operator actions that can require a second person: the scope that permits each, and its effect.

A request is handled at once, or kept as a proposal and handled when it is approved: `permit` is required of the proposer and of
the approver, `run` has the effect in the proposer's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from airbridge.control_plane import worker_commands
from airbridge.control_plane.exceptions import InvalidScope, Refused
from airbridge.control_plane.gateway.api import documents, operator_endpoint
from airbridge.control_plane.gateway.auth.authentication import Operator
from airbridge.control_plane.gateway.hosts import binding
from airbridge.control_plane.identity import tokens as issuing
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.policy.approved import CHANGE_POLICY
from airbridge.control_plane.policy.rules import RulePolicy
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import Name, RefusalReason
from airbridge.executor.ledger import audit, workers
from airbridge.executor.ledger.identity import proposals, revocations, tokens
from airbridge.executor.ledger.identity.models import TokenRow
from airbridge.executor.setting_values import FourEyes

Payload = Mapping[str, Any]
LARGEST_POLICY: Final = 128 * 1024


class RevocationTarget(operator_endpoint.Body):
    """Target of a revocation. A pool is written ``region/pool``; a certificate is its SHA-256, an issuer its key id, in hex."""

    kind: Literal["worker", "certificate", "pool", "issuer"]
    value: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9./_-]+$")


class Revoke(RevocationTarget):
    """Target of a revocation, and its reason."""

    reason: str = Field(min_length=1, max_length=1000)


class NewJoinToken(operator_endpoint.Body):
    """Request for a join token."""

    kind: Literal["join"] = "join"
    region: Name
    pool: Name = "default"
    #: The one name that may enrol with it.
    worker: Name | None = None
    #: Unset: an hour, or as long as the requesting token.
    ttl_seconds: float | None = Field(default=None, gt=0, le=90 * 86_400)
    uses: int | None = Field(default=1, ge=1)


class NewAccessToken(operator_endpoint.Body):
    """Request for an operators' access token. Its scopes, owner and lifetime must be within those of the requesting token."""

    kind: Literal["access"] = "access"
    owner: str = Field(min_length=1, max_length=250)
    scopes: tuple[str, ...] = Field(min_length=1, max_length=50)
    ttl_seconds: float | None = Field(default=None, gt=0, le=366 * 86_400)


class NewToken(operator_endpoint.Body):
    """The body of ``POST tokens``."""

    token: Annotated[NewJoinToken | NewAccessToken, Field(discriminator="kind")]


class NewPolicy(operator_endpoint.Body):
    """Text of a policy, and the digest of the approved one that it replaces."""

    text: str = Field(max_length=LARGEST_POLICY)
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """One action."""

    kind: FourEyes
    #: Raises `Refused` unless the operator's scopes allow it.
    permit: Callable[[Any, Operator, Payload], None]
    run: Callable[[Any, Operator, Payload], dict[str, Any]]
    #: May be done by one person at once with scope ``break_glass:use``: it only takes rights away.
    emergency: bool = False
    #: The proposer collects its result, a secret, after the approval.
    collected: bool = False


def _may_revoke(_session: Any, operator: Operator, asked: Payload) -> None:
    operator.require("revocations:write", f"{asked['kind']}/{asked['value']}")


def _add_revocation(session: Any, operator: Operator, asked: Payload) -> dict[str, Any]:
    wanted = Revoke.model_validate(asked)
    row = revocations.add(session, wanted.kind, wanted.value, wanted.reason, operator.actor)
    _record_revocation(session, operator, "revocation.added", wanted, wanted.reason)
    return documents.revocation(row)


def _remove_revocation(session: Any, operator: Operator, asked: Payload) -> dict[str, Any]:
    wanted = RevocationTarget.model_validate(asked)
    if not revocations.remove(session, wanted.kind, wanted.value):
        raise operator_endpoint.missing(f"{wanted.kind} {wanted.value!r} is not revoked")
    row = workers.get(session, wanted.value) if wanted.kind == "worker" else None
    if row is not None and row.wanted == "revoked":
        # Revoked by `worker revoke`, which also ordered it to stop: without this it would enrol, and get no work.
        row.wanted, row.comment = "active", None
    _record_revocation(session, operator, "revocation.removed", wanted, None)
    return {"kind": wanted.kind, "value": wanted.value}


def _record_revocation(
    session: Any, operator: Operator, event: str, what: RevocationTarget, reason: str | None
) -> None:
    audit.record(
        session,
        event,
        "changed",
        operator.actor,
        address=operator.address,
        rule="scope revocations:write",
        region=what.value.partition("/")[0] if what.kind == "pool" else None,
        worker_id=what.value[:63] if what.kind == "worker" else None,
        token=operator.token_id,
        kind=what.kind,
        value=what.value,
        reason=reason,
    )


def _may_command(session: Any, operator: Operator, asked: Payload) -> None:
    row = workers.get(session, asked["worker"])
    operator.require(
        worker_commands.COMMANDS[asked["command"]].action,
        asked["worker"],
        region=row.region if row else "unknown",
        pool=row.pool if row else "unknown",
    )
    if row is None:
        raise worker_commands.unknown(asked["worker"])


def _command(session: Any, operator: Operator, asked: Payload) -> dict[str, Any]:
    row = workers.get(session, asked["worker"])
    if row is None:
        raise worker_commands.unknown(asked["worker"])
    return documents.worker(
        worker_commands.apply(
            session,
            worker_commands.COMMANDS[asked["command"]],
            row,
            asked["comment"],
            operator.actor,
            address=operator.address,
            token=operator.token_id,
        )
    )


def _may_revoke_token(session: Any, operator: Operator, asked: Payload) -> None:
    if asked["token"] == operator.token_id:
        # The end of one's own session takes nothing from anybody else.
        return
    found = session.get(TokenRow, asked["token"])
    operator.require("tokens:revoke", found.owner if found else "unknown")


def _revoke_token(session: Any, operator: Operator, asked: Payload) -> dict[str, Any]:
    token = asked["token"]
    row = issuing.revoke(session, token, operator.actor, operator.address, operator.token_id)
    if row is None:
        raise operator_endpoint.missing(f"there is no token {token[:64]!r}")
    return documents.token(row)


def _may_create_token(_session: Any, operator: Operator, asked: Payload) -> None:
    wanted = NewToken.model_validate({"token": asked}).token
    if isinstance(wanted, NewJoinToken):
        operator.require("tokens:create", "join", region=wanted.region, pool=wanted.pool)
        return
    operator.require("tokens:create", "access")
    try:
        scopes = Scopes.parse(wanted.scopes)
    except InvalidScope as error:
        raise Refused(400, RefusalReason.MALFORMED, str(error)) from error
    if not operator.scopes.cover(scopes):
        raise Refused(403, RefusalReason.FORBIDDEN, "a token's scopes must be covered by its creator's own")


def _create_token(session: Any, operator: Operator, asked: Payload) -> dict[str, Any]:
    wanted = NewToken.model_validate({"token": asked}).token
    create = _create_join if isinstance(wanted, NewJoinToken) else _create_access
    issued = create(session, operator, wanted)  # type: ignore[arg-type] # chosen by its type
    return {"token": issued.text, **documents.token(issued.row)}


def _create_join(session: Any, operator: Operator, wanted: NewJoinToken) -> issuing.Issued:
    return issuing.create_join(
        session,
        region=wanted.region,
        pool=wanted.pool,
        worker=wanted.worker,
        owner=operator.owner,
        parent=_parent(operator),
        ttl=_ttl(wanted.ttl_seconds),
        uses=wanted.uses,
        actor=operator.actor,
        address=operator.address,
    )


def _create_access(session: Any, operator: Operator, wanted: NewAccessToken) -> issuing.Issued:
    return issuing.create_access(
        session,
        scopes=wanted.scopes,
        owner=wanted.owner,
        parent=_parent(operator),
        actor=operator.actor,
        address=operator.address,
        ttl=_ttl(wanted.ttl_seconds),
    )


def _ttl(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def check_lifetime(session: Any, operator: Operator, wanted: NewJoinToken | NewAccessToken) -> None:
    """Raise `Refused` for a lifetime that the operator's token cannot give. It is no part of the action, which may come hours later."""
    issuing.check_within(session, _ttl(wanted.ttl_seconds), _parent(operator))


def _parent(operator: Operator) -> issuing.Parent:
    return issuing.Parent(operator.token_id, operator.owner, operator.expires_at)


def _may_change_policy(_session: Any, operator: Operator, asked: Payload) -> None:
    operator.require("policy:write")
    try:
        RulePolicy.parse(asked["text"].encode(), "the policy")
    except ConfigurationError as error:
        raise Refused(400, RefusalReason.MALFORMED, str(error)[:2_000]) from error


def _change_policy(session: Any, operator: Operator, asked: Payload) -> dict[str, Any]:
    """Check that nothing was approved since the proposal. The approved proposal itself is the policy from now on."""
    last = proposals.last_approved(session, CHANGE_POLICY)
    in_force = RulePolicy.parse(last.payload["text"].encode(), "").digest if last is not None else None
    if asked["replaces"] != in_force:
        raise Refused(
            409,
            RefusalReason.FORBIDDEN,
            "another policy was approved since this was proposed; propose it again",
        )
    digest = RulePolicy.parse(asked["text"].encode(), "").digest
    audit.record(
        session,
        "policy.approved",
        "changed",
        operator.actor,
        address=operator.address,
        rule="scope policy:write",
        token=operator.token_id,
        digest=digest,
        digest_before=in_force,
    )
    return {"digest": digest}


def is_own(session: Any, operator: Operator, name: str, asked: Payload) -> bool:
    """Return whether an action ends only what the operator's own token is or made: that needs no second person."""
    return name == "token.revoke" and asked["token"] in tokens.family(session, operator.token_id)


ACTIONS: Final[Mapping[str, Action]] = {
    "revocation.add": Action(FourEyes.REVOCATION, _may_revoke, _add_revocation, emergency=True),
    "revocation.remove": Action(FourEyes.REVOCATION, _may_revoke, _remove_revocation),
    "worker.revoke": Action(FourEyes.REVOCATION, _may_command, _command, emergency=True),
    "token.revoke": Action(FourEyes.REVOCATION, _may_revoke_token, _revoke_token, emergency=True),
    "token.create": Action(FourEyes.TOKENS, _may_create_token, _create_token, collected=True),
    "bound_key.bind": Action(FourEyes.TOKENS, binding.may_bind, binding.bind),
    CHANGE_POLICY: Action(FourEyes.POLICY, _may_change_policy, _change_policy),
}


def command(session: Any, operator: Operator, asked: Payload) -> dict[str, Any]:
    """Apply a command to a worker that never needs a second person: drain, maintenance, resume."""
    _may_command(session, operator, asked)
    return _command(session, operator, asked)
