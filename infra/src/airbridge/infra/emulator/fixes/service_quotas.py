"""Quotas of EC2 and Fargate, beside those of VPCs, which are all that moto has.

The values are those of an account whose limits were raised once: a new account's are too low for any environment.
"""

from __future__ import annotations

from typing import Any

from moto.servicequotas.models import ServiceQuotasBackend

#: Value by service and code.
QUOTAS: dict[tuple[str, str], float] = {
    ("ec2", "L-0263D0A3"): 20.0,  # Elastic IP addresses
    ("ec2", "L-1216C47A"): 1024.0,  # vCPUs of standard on-demand instances
    ("ec2", "L-34B43A08"): 1024.0,  # vCPUs of standard Spot instances
    ("ec2", "L-DB2E81BA"): 128.0,  # vCPUs of G and VT on-demand instances
    ("ec2", "L-3819A6DF"): 128.0,  # vCPUs of G and VT Spot instances
    ("ec2", "L-417A185B"): 128.0,  # vCPUs of P on-demand instances
    ("ec2", "L-7212CCBC"): 128.0,  # vCPUs of P Spot instances
    ("fargate", "L-3032A538"): 256.0,  # vCPUs of on-demand tasks
}


def apply() -> None:
    """Answer for these quotas, too."""
    backend: Any = ServiceQuotasBackend
    known = backend.get_service_quota

    def get(self: Any, service_code: str, quota_code: str) -> dict[str, Any]:
        value = QUOTAS.get((service_code, quota_code))
        if value is None:
            found: dict[str, Any] = known(self, service_code, quota_code)
            return found
        return {"ServiceCode": service_code, "QuotaCode": quota_code, "Value": value, "Unit": "None"}

    backend.get_service_quota = get
