"""A zone that is made with a VPC is a private one, as in AWS; moto needs the flag as well."""

from __future__ import annotations

from typing import Any

from moto.route53.responses import Route53


def apply() -> None:
    """Set moto's flag."""
    responses: Any = Route53
    create = responses.create_hosted_zone
    read = responses._get_bool_param  # noqa: SLF001  # how moto's action reads the flag

    def with_vpc(self: Any) -> Any:
        private = bool(self._get_param("VPC.VPCId"))

        def flag(name: str, if_none: Any = None) -> Any:
            return (
                private or read(self, name, if_none)
                if name == "HostedZoneConfig.PrivateZone"
                else read(self, name, if_none)
            )

        self._get_bool_param = flag
        return create(self)

    responses.create_hosted_zone = with_vpc
