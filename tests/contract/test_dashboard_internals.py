"""What the dashboard relies on in Airflow 3.0.4's api-server and UI. A change of Airflow's version starts here."""

from __future__ import annotations

from pathlib import Path

import airflow
import pytest
from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

from airbridge.control_plane.dashboard import _airflow
from airbridge.control_plane.dashboard.link import TimelineLink
from airbridge.control_plane.plugin import AirBridgePlugin


@pytest.fixture
def auth_manager(monkeypatch: pytest.MonkeyPatch) -> SimpleAuthManager:
    """The auth manager that the api-server would have made."""
    from airflow.api_fastapi import app

    manager = SimpleAuthManager()
    monkeypatch.setattr(app, "auth_manager", manager)
    return manager


def test_the_ui_keeps_its_token_where_signing_in_looks_for_it() -> None:
    """Airflow's UI moves the token from this cookie to this key of local storage, and drops it there on logout."""
    (bundle,) = (Path(airflow.__file__).parent / "ui" / "dist" / "assets").glob("index-*.js")
    source = bundle.read_text()
    assert _airflow.TOKEN_COOKIE == COOKIE_NAME_JWT_TOKEN
    assert f'document.cookie="{_airflow.TOKEN_COOKIE}=; expires=' in source
    assert f'="{_airflow.TOKEN_STORAGE_KEY}",' in source
    assert "localStorage.removeItem(" in source


def test_the_ui_shows_extra_links_as_buttons() -> None:
    """A task's page asks for its extra links and renders an address as it is."""
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
    assert (_airflow.may_steer(user), _airflow.may_revoke(user)) == (steers, revokes)


def test_a_user_without_a_role_sees_nothing(auth_manager: SimpleAuthManager) -> None:
    """Being signed in is not enough."""
    user = SimpleAuthManagerUser(username="nobody", role=None)
    assert not any((_airflow.may_see(user), _airflow.may_steer(user), _airflow.may_audit(user)))


def test_the_plugin_offers_what_the_api_server_mounts() -> None:
    """One application below /airbridge, the way to it without a slash, and one link for every operator."""
    plugin = AirBridgePlugin()
    (mounted,) = plugin.fastapi_apps
    (led,) = plugin.fastapi_root_middlewares
    (link,) = plugin.global_operator_extra_links
    assert (mounted["url_prefix"], callable(mounted["app"])) == ("/airbridge", True)
    assert {"prefix": mounted["url_prefix"]} == led["kwargs"]
    assert isinstance(link, TimelineLink)
    assert link.name == "Timeline"
