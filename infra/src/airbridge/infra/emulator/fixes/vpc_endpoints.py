"""An endpoint to a service in another region returns that region."""

from __future__ import annotations

from typing import Any

from moto.ec2.responses.vpcs import VPCs


def apply() -> None:
    """Keep the service's region."""
    responses: Any = VPCs
    create = responses.create_vpc_endpoint

    def with_region(self: Any) -> Any:
        result = create(self)
        region = self._get_param("ServiceRegion")
        if region:
            result.result["VpcEndpoint"].service_region = region
        return result

    responses.create_vpc_endpoint = with_region
