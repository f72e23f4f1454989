"""Airflow plugin of AirBridge, found by its entry point. Importing it creates nothing."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airbridge.control_plane.dashboard.addresses import PREFIX


class AirBridgePlugin(AirflowPlugin):  # type: ignore[misc] # Airflow is untyped here
    """Plugin that adds the dashboard and the Timeline button to Airflow."""

    name = "airbridge"

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:
        """Dashboard application. Imported here, because only the api-server reads this property."""
        from airbridge.control_plane.dashboard import app

        return [{"name": "AirBridge", "app": app.create(), "url_prefix": PREFIX}]

    @property
    def fastapi_root_middlewares(self) -> list[dict[str, Any]]:
        """Middleware in front of the whole api-server: the redirect to the dashboard, and what compensates for Airflow's faults.

        Only the api-server reads this property, so the deadline of params' patterns begins here as well.
        """
        from airbridge.control_plane.dashboard import _airflow, sessions
        from airbridge.control_plane.dashboard.closed_routes import ClosedRoutes
        from airbridge.control_plane.dashboard.range_header import WithoutRange
        from airbridge.control_plane.dashboard.redirect import TrailingSlash
        from airbridge.control_plane.dashboard.secure_cookie import SecureCookie
        from airbridge.executor import param_patterns

        param_patterns.install()
        middlewares = [
            {"name": "AirBridge", "middleware": TrailingSlash, "kwargs": {"prefix": PREFIX}},
            {"name": "AirBridge without Range", "middleware": WithoutRange, "kwargs": {}},
            {"name": "AirBridge closed routes", "middleware": ClosedRoutes, "kwargs": {}},
        ]
        if _airflow.base_url().startswith("https://"):
            cookies = {"cookies": (_airflow.TOKEN_COOKIE, sessions.COOKIE)}
            middlewares.append(
                {"name": "AirBridge secure cookies", "middleware": SecureCookie, "kwargs": cookies}
            )
        return middlewares

    @property
    def global_operator_extra_links(self) -> list[Any]:
        """Timeline button on every task's page."""
        from airbridge.control_plane.dashboard.timeline_button import TimelineLink

        return [TimelineLink()]
