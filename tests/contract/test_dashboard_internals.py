"""Internals of Airflow 3.0.4's api-server and UI that the dashboard depends on. Check these first when Airflow's version changes."""

from __future__ import annotations

from pathlib import Path

import airflow
import pytest
from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

from airbridge.control_plane.dashboard import _airflow
from airbridge.control_plane.dashboard.closed_routes import ClosedRoutes
from airbridge.control_plane.dashboard.range_header import WithoutRange
from airbridge.control_plane.dashboard.redirect import TrailingSlash
from airbridge.control_plane.dashboard.timeline_button import TimelineLink
from airbridge.control_plane.plugin import AirBridgePlugin


@pytest.fixture
def auth_manager(monkeypatch: pytest.MonkeyPatch) -> SimpleAuthManager:
    """The auth manager that the api-server would have made."""
    from airflow.api_fastapi import app

    manager = SimpleAuthManager()
    monkeypatch.setattr(app, "auth_manager", manager)
    return manager


def test_ui_token_location() -> None:
    """Airflow's UI moves the token from this cookie to this key of local storage, and drops it there on logout."""
    (bundle,) = (Path(airflow.__file__).parent / "ui" / "dist" / "assets").glob("index-*.js")
    source = bundle.read_text()
    assert _airflow.TOKEN_COOKIE == COOKIE_NAME_JWT_TOKEN
    assert f'document.cookie="{_airflow.TOKEN_COOKIE}=; expires=' in source
    assert f'="{_airflow.TOKEN_STORAGE_KEY}",' in source
    assert "localStorage.removeItem(" in source


def test_ui_shows_extra_links() -> None:
    """A task's page requests its extra links and renders an address unchanged."""
    (bundle,) = (Path(airflow.__file__).parent / "ui" / "dist" / "assets").glob("index-*.js")
    assert "extra_links" in bundle.read_text()


@pytest.mark.parametrize(
    ("role", "steers", "revokes"),
    [("VIEWER", False, False), ("USER", False, False), ("OP", True, True), ("ADMIN", True, True)],
)
def test_roles_see_and_steer(auth_manager: SimpleAuthManager, role: str, steers: bool, revokes: bool) -> None:
    """Every role sees the platform and its audit log; operators and administrators steer workers."""
    user = SimpleAuthManagerUser(username="someone", role=role)
    assert _airflow.may_see(user)
    assert _airflow.may_audit(user)
    assert _airflow.may_see_task(user, "any_dag")
    assert (_airflow.may_command(user), _airflow.may_revoke(user)) == (steers, revokes)


def test_user_without_role_sees_nothing(auth_manager: SimpleAuthManager) -> None:
    """A signed-in user without a role sees nothing."""
    user = SimpleAuthManagerUser(username="nobody", role=None)
    assert not any((_airflow.may_see(user), _airflow.may_command(user), _airflow.may_audit(user)))


def test_plugin_matches_api_server() -> None:
    """The plugin has one application below /airbridge, its middlewares, and one link for every operator."""
    plugin = AirBridgePlugin()
    (mounted,) = plugin.fastapi_apps
    redirect, without_range, closed_routes = plugin.fastapi_root_middlewares
    (link,) = plugin.global_operator_extra_links
    assert (mounted["url_prefix"], callable(mounted["app"])) == ("/airbridge", True)
    assert (TrailingSlash, {"prefix": mounted["url_prefix"]}) == (redirect["middleware"], redirect["kwargs"])
    assert (WithoutRange, {}) == (without_range["middleware"], without_range["kwargs"])
    assert (ClosedRoutes, {}) == (closed_routes["middleware"], closed_routes["kwargs"])
    assert isinstance(link, TimelineLink)
    assert link.name == "Timeline"
