"""AirBridge's Airflow plugin. Airflow finds it by its entry point and instantiates nothing at import."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airbridge.control_plane.dashboard.addresses import PREFIX


class AirBridgePlugin(AirflowPlugin):  # type: ignore[misc] # Airflow is untyped here
    """Registers AirBridge with Airflow's processes under one name."""

    name = "airbridge"

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:
        """The dashboard. Only the api-server asks for it, and only then is it imported."""
        from airbridge.control_plane.dashboard import app

        return [{"name": "AirBridge", "app": app.create(), "url_prefix": PREFIX}]

    @property
    def fastapi_root_middlewares(self) -> list[dict[str, Any]]:
        """Lets the dashboard be found without the slash at the end of its address."""
        from airbridge.control_plane.dashboard.slash import TrailingSlash

        return [{"name": "AirBridge", "middleware": TrailingSlash, "kwargs": {"prefix": PREFIX}}]

    @property
    def global_operator_extra_links(self) -> list[Any]:
        """The Timeline button on every task's page."""
        from airbridge.control_plane.dashboard.link import TimelineLink

        return [TimelineLink()]
