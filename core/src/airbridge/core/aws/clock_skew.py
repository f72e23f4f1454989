"""Signing by AWS's clock where this host's own is wrong.

AWS refuses a request whose signature is more than 5 minutes off (S3: 15), which would cut a host with a wrong clock off from
its queue and its buckets. Every answer of AWS, a refusal too, carries the time; from the second request on a client made
`correct_clock_skew` signs by it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

# Up to here the host's own clock is used: a Date header is exact to a second, and as old as its answer.
TOLERATED: Final = timedelta(seconds=60)
_PREFIX: Final = "airbridge-"
_SIGNED_BY_TIME: Final = ("v4", "s3v4")
_STAMP: Final = "%Y%m%dT%H%M%SZ"
_CONTEXT: Final = "airbridge_offset"


def correct_clock_skew(client: Any) -> Any:
    """Return a boto3 client, changed so that it signs by AWS's time where this host's clock is off."""
    _register_signers()
    offset = _Offset(client.meta.service_model.service_name)
    # First: botocore's own handlers of this event end the choice with their result.
    client.meta.events.register_first("choose-signer.*.*", offset.choose)
    client.meta.events.register("after-call.*.*", offset.learn)
    return client


class _Offset:
    """Offset of AWS's clock from this host's, as one client measures it."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._offset = timedelta(0)

    def choose(self, signature_version: Any, context: dict[str, Any], **_: Any) -> str | None:
        """Return the signer that corrects the time, if it needs to be; None leaves the choice as it is."""
        if not self._offset or signature_version not in _SIGNED_BY_TIME:
            return None
        context[_CONTEXT] = self._offset
        return _PREFIX + str(signature_version)

    def learn(self, parsed: dict[str, Any], **_: Any) -> None:
        """Measure the offset from the Date header of a response."""
        try:
            date = parsedate_to_datetime(parsed["ResponseMetadata"]["HTTPHeaders"]["date"])
        except (KeyError, ValueError, TypeError):
            return
        offset = date.astimezone(UTC) - datetime.now(UTC)
        was, self._offset = self._offset, offset if abs(offset) > TOLERATED else timedelta(0)
        if bool(was) != bool(self._offset):
            log.warning("aws.clock_off", service=self._service, seconds=round(-offset.total_seconds(), 1))


def _register_signers() -> None:
    """Register, once, the signers that take the offset from the request's context."""
    from botocore.auth import AUTH_TYPE_MAPS

    for name in _SIGNED_BY_TIME:
        if _PREFIX + name not in AUTH_TYPE_MAPS:
            AUTH_TYPE_MAPS[_PREFIX + name] = _corrected(AUTH_TYPE_MAPS[name])


def _corrected(signer: Any) -> Any:
    class Corrected(signer):  # type: ignore[misc]  # botocore has no types
        def _modify_request_before_signing(self, request: Any) -> None:
            offset = request.context.get(_CONTEXT)
            if offset:
                request.context["timestamp"] = (datetime.now(UTC) + offset).strftime(_STAMP)
            super()._modify_request_before_signing(request)

    return Corrected
