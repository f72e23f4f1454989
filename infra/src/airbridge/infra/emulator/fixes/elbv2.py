"""A listener's certificate need not have been imported first: any ACM ARN of the account and region will do.

The stacks are given a certificate's ARN; on one machine no such certificate exists.
"""

from __future__ import annotations

from typing import Any

from moto.elbv2 import models


def apply() -> None:
    """Accept ACM certificates by their ARN."""
    module: Any = models
    backend = module.ELBv2Backend
    known = backend._certificate_exists  # noqa: SLF001  # moto's own check, asked first

    def exists(self: Any, certificate_arn: str) -> bool:
        own = f"arn:aws:acm:{self.region_name}:{self.account_id}:certificate/"
        return certificate_arn.startswith(own) or bool(known(self, certificate_arn))

    def note_use(*_arguments: Any, **_named: Any) -> None:
        """moto notes in ACM who uses a certificate; here there may be none to note it in."""

    backend._certificate_exists = exists  # noqa: SLF001
    module.register_certificate = note_use
