"""A NAT gateway that is requested twice with one client token is created once.

A client that lost the response repeats the request. moto makes a second gateway then, whose address is taken by the first.
"""

from __future__ import annotations

import threading
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.responses.nat_gateways import NatGateways


def apply() -> None:
    """Close the gap."""
    responses: Any = NatGateways
    create = responses.create_nat_gateway
    lock = threading.Lock()

    def once(self: Any) -> Any:
        token = self._get_param("ClientToken")
        with lock:
            made: dict[str, Any] = vars(self.ec2_backend).setdefault("nat_gateways_by_token", {})
            if token in made:
                return ActionResult({"NatGateway": made[token]})
            result = create(self)
            if token:
                made[token] = next(reversed(self.ec2_backend.nat_gateways.values()))
            return result

    responses.create_nat_gateway = once
