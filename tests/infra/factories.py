"""Environments for tests: a valid one, to be changed."""

from __future__ import annotations

from typing import Any

DIGEST = "a" * 64


def pool(name: str = "default", **changes: Any) -> dict[str, Any]:
    return {"name": name, "instance_types": ["m7g.large"], "slots": 4, "max_instances": 4, **changes}


def region(name: str = "eu-west-1", cidr: str = "10.1.0.0/20", **changes: Any) -> dict[str, Any]:
    return {"name": name, "cidr": cidr, "pool": [pool()], **changes}


def auth(**changes: Any) -> dict[str, Any]:
    return {
        "url": "https://airflow.test",
        "issuer": "https://login.test",
        "client_id": "airbridge",
        "roles": {"staff": "viewer"},
        **changes,
    }


def environment(**changes: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "tier": "development",
        "account": "123456789012",
        "home_region": "eu-west-1",
        "trust_domain": "airbridge.test",
        "control_plane": {
            "cidr": "10.0.0.0/20",
            "certificate_arn": "arn:aws:acm:us-east-1:123456789012:certificate/0",
            "ui_cidrs": ["10.0.0.0/8"],
            "operator_cidrs": ["10.0.0.0/8"],
            "auth": auth(),
        },
        "images": {
            "control_plane": f"control-plane@sha256:{DIGEST}",
            "worker": f"edge-worker@sha256:{DIGEST}",
        },
        "pipelines": {"repository": "airbridge/airbridge", "deployment_environment": "test"},
        "region": [region()],
        **changes,
    }
