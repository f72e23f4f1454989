"""A database keeps its performance insights, and a parameter that was set has the source `user`.

moto drops the performance insights settings, and does not return that a parameter's source is the user, so that
Terraform takes every parameter for missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moto.rds.models import DBInstance, DBParameterGroup, RDSBackend

_KEPT = {
    "EnablePerformanceInsights": "performance_insights_enabled",
    "PerformanceInsightsKMSKeyId": "performance_insights_kms_key_id",
    "PerformanceInsightsRetentionPeriod": "performance_insights_retention_period",
}


def apply() -> None:
    """Keep the settings of the request."""
    group: Any = DBParameterGroup
    update = group.update_parameters

    def by_user(self: Any, parameters: Iterable[dict[str, Any]]) -> None:
        update(self, [{"Source": "user", **parameter} for parameter in parameters])

    group.update_parameters = by_user
    backend: Any = RDSBackend
    create, modify = backend.create_db_instance, backend.modify_db_instance

    def create_keeping(self: Any, settings: dict[str, Any]) -> DBInstance:
        return _keep(create(self, settings), settings)

    def modify_keeping(self: Any, name: str, settings: dict[str, Any]) -> DBInstance:
        return _keep(modify(self, name, settings), settings)

    backend.create_db_instance, backend.modify_db_instance = create_keeping, modify_keeping


def _keep(instance: Any, settings: dict[str, Any]) -> DBInstance:
    for parameter, attribute in _KEPT.items():
        value = settings.get(parameter)
        if value is not None:
            setattr(instance, attribute, value)
    kept: DBInstance = instance
    return kept
