"""A database keeps its performance insights, a parameter that was set has the source `user`, and engines have versions.

moto drops the performance insights settings, and does not return that a parameter's source is the user, so that
Terraform takes every parameter for missing. It has no DescribeDBEngineVersions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moto.core.responses import ActionResult
from moto.rds.models import DBInstance, DBParameterGroup, RDSBackend
from moto.rds.responses import RDSResponse

_KEPT = {
    "EnablePerformanceInsights": "performance_insights_enabled",
    "PerformanceInsightsKMSKeyId": "performance_insights_kms_key_id",
    "PerformanceInsightsRetentionPeriod": "performance_insights_retention_period",
}

#: Versions that engines are offered in.
ENGINE_VERSIONS = {"postgres": ("13.22", "14.19", "15.14", "16.10", "17.6")}


def apply() -> None:
    """Keep the settings of the request, and list the engines' versions."""
    responses: Any = RDSResponse

    def describe_db_engine_versions(self: Any) -> ActionResult:
        engine = str(self.params.get("Engine"))
        found = [
            {
                "Engine": engine,
                "EngineVersion": version,
                "DBParameterGroupFamily": f"{engine}{version.split('.')[0]}",
            }
            for version in ENGINE_VERSIONS.get(engine, ())
        ]
        return ActionResult({"DBEngineVersions": found})

    responses.describe_db_engine_versions = describe_db_engine_versions
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
