"""Auth manager of Airflow's UI for sign-in by OpenID Connect.

Users and their roles (viewer, user, op, admin) come from the issuer; what a role may do is SimpleAuthManager's own, of
which nothing is overridden. There are no passwords, and nothing is written to disk.

    [core] auth_manager = airbridge.control_plane.sign_in.auth_manager.OidcAuthManager
    [airbridge] ui_oidc_file = /etc/airbridge/ui-oidc.toml
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any, Final

from airflow.api_fastapi.app import AUTH_MANAGER_FASTAPI_APP_PREFIX
from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.configuration import conf
from fastapi import FastAPI

from airbridge.control_plane.sign_in import browser
from airbridge.control_plane.sign_in.code_grant import CodeGrant
from airbridge.control_plane.sign_in.rules import UiRules
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor._airflow import airflow_option
from airbridge.executor.setting_values import SECTION

_PURPOSE: Final = b"airbridge.ui-sign-in"


class OidcAuthManager(SimpleAuthManager):  # type: ignore[misc]  # Airflow is untyped here
    """SimpleAuthManager's roles, given to users of an OpenID Connect issuer."""

    def init(self) -> None:
        """Check the configuration, in place of making passwords. Raises `ConfigurationError`."""
        if conf.getboolean("core", "simple_auth_manager_all_admins"):
            raise ConfigurationError(
                "[core] simple_auth_manager_all_admins is True: everybody would be an admin without sign-in; remove it"
            )
        _rules()
        _url()

    @staticmethod
    def get_users() -> list[dict[str, str]]:
        """Return none: users are the issuer's."""
        return []

    def get_url_login(self, **_: Any) -> str:
        """Return the path of the page that sends the browser to the issuer."""
        return f"{AUTH_MANAGER_FASTAPI_APP_PREFIX}{browser.LOGIN}"

    def get_fastapi_app(self) -> FastAPI:
        """Return the application that is mounted below `/auth`."""
        rules, url = _rules(), _url()
        seconds = round(rules.session_minutes * 60)

        def issue(name: str, role: str) -> str:
            user = SimpleAuthManagerUser(username=name, role=role)
            return str(self.generate_jwt(user, expiration_time_in_seconds=seconds))

        site = browser.Site(url, COOKIE_NAME_JWT_TOKEN, _key())
        return browser.create(site, CodeGrant(rules, f"{url.rstrip('/')}/auth{browser.CALLBACK}"), issue)


def _rules() -> UiRules:
    """Return the rules of sign-in. Raises `ConfigurationError`."""
    file = airflow_option(SECTION, UiRules.OPTION)
    if not file:
        raise ConfigurationError(
            f"[{SECTION}] {UiRules.OPTION} is not set; OidcAuthManager reads issuer, audience and roles from it"
        )
    return UiRules.read(Path(file))


def _url() -> str:
    url = str(conf.get("api", "base_url", fallback="") or "")
    if not url.startswith(("https://", "http://")):
        raise ConfigurationError(
            f"[api] base_url is {url!r}; sign-in needs the address under which users open Airflow, as in https://airflow.example.com"
        )
    return url


def _key() -> bytes:
    """Return the key of the sign-in's cookie, the same on every replica."""
    secret = str(conf.get("api", "secret_key"))
    return hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256)
