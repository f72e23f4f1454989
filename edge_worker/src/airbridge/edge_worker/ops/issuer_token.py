"""The doctor's check of an issuer's token (join methods ``oidc`` and ``kubernetes``): its claims, which only the gateway can verify."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from airbridge.edge_worker.ops.check_result import CheckResult

_NAME = "join token"
_SHOWN = 200


def check(path: Path, now: datetime) -> CheckResult:
    """Check that a file holds a token that has not expired; name its issuer, audience and subject."""
    try:
        claims = _claims(path.read_text())
    except OSError as error:
        return CheckResult(_NAME, False, f"{path}: {error.strerror}; it must be a readable file")
    if claims is None:
        return CheckResult(_NAME, False, f"{path} holds no signed JWT of an issuer")
    who = ", ".join(f"{name} {str(claims.get(name))[:_SHOWN]}" for name in ("iss", "aud", "sub"))
    expires = claims.get("exp")
    if not isinstance(expires, int | float):
        return CheckResult(_NAME, False, f"{path} never expires ({who}); the gateway refuses such tokens")
    left = expires - now.timestamp()
    if left <= 0:
        return CheckResult(
            _NAME, False, f"{path} expired {-left:.0f} s ago ({who}); its issuer must renew the file"
        )
    return CheckResult(_NAME, True, f"{path}: {who}, valid for {left:.0f} s")


def _claims(token: str) -> dict[str, Any] | None:
    parts = token.strip().split(".")
    if len(parts) != 3:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error):
        return None
    return found if isinstance(found, dict) else None
