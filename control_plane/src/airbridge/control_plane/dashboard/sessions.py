"""Sessions of the dashboard: the signed-in user, their rights, and the session cookie.

Signing in exchanges the token of Airflow's UI for a cookie of the dashboard's own, which scripts cannot read and other
sites cannot send. It holds Airflow's token itself: it expires with it, and every request verifies it again.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from airbridge.control_plane.dashboard import _airflow

COOKIE: Final = "airbridge_session"
_CSRF_PURPOSE: Final = b"airbridge dashboard form"


@dataclass(frozen=True, slots=True)
class Viewer:
    """Signed-in user, from Airflow's auth manager."""

    user: Any
    name: str
    subject: str
    may_command: bool
    may_revoke: bool
    may_audit: bool
    #: CSRF token of the session's forms: only a holder of the session cookie can compute it.
    form_token: str

    @property
    def actor(self) -> str:
        """Name of this user in events and the audit trail."""
        return f"user:{self.name}"

    @property
    def rights(self) -> tuple[bool, bool, bool]:
        """Rights that change a page's content: part of the cache key."""
        return self.may_command, self.may_revoke, self.may_audit


class NotSignedIn(Exception):  # noqa: N818 - says what was found
    """The browser has no session, or an expired one."""


class Forbidden(Exception):  # noqa: N818 - says what was found
    """The signed-in user lacks the right."""


async def identify(token: str) -> Viewer:
    """Return the user of an Airflow token. Raises `NotSignedIn`, or `Forbidden` for a user whose role may not see pages."""
    user = await _airflow.user_of_token(token) if token else None
    if user is None:
        raise NotSignedIn
    if not _airflow.may_see(user):
        raise Forbidden("Your Airflow role does not let you see the platform's activity.")
    return Viewer(
        user=user,
        name=str(user.get_name()),
        subject=_airflow.subject(token),
        may_command=_airflow.may_command(user),
        may_revoke=_airflow.may_revoke(user),
        may_audit=_airflow.may_audit(user),
        form_token=hmac.new(token.encode(), _CSRF_PURPOSE, hashlib.sha256).hexdigest(),
    )


async def viewer_of(request: Request) -> Viewer:
    """Return the user of a request, by its session cookie alone."""
    return await identify(request.cookies.get(COOKIE, ""))


def bearer(request: Request) -> str:
    """Return the token of an Authorization header; empty if there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def set_session_cookie(response: Response, request: Request, token: str) -> None:
    """Set the session cookie, which lasts until the browser is closed or Airflow's token expires."""
    response.set_cookie(
        COOKIE,
        token,
        path=request.scope.get("root_path", "") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def clear_session_cookie(response: Response, request: Request) -> None:
    """Delete the session cookie."""
    response.delete_cookie(COOKIE, path=request.scope.get("root_path", "") or "/")


def check_same_origin(request: Request) -> None:
    """Raise `Forbidden` unless the request's headers name this origin as its source."""
    fetch_site = request.headers.get("sec-fetch-site")
    if fetch_site is not None and fetch_site != "same-origin":
        raise Forbidden("This request came from another site.")
    # Browsers that do not send Sec-Fetch-Site send Origin with every POST.
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Forbidden("This request came from another site.")
    if origin is None and fetch_site is None:
        raise Forbidden("This request has neither an Origin nor a Sec-Fetch-Site header.")


def check_form(request: Request, viewer: Viewer, given: str) -> None:
    """Raise `Forbidden` unless the form carries this session's CSRF token."""
    check_same_origin(request)
    if not hmac.compare_digest(given.encode(), viewer.form_token.encode()):
        raise Forbidden("The form has expired: go back, reload the page and send it again.")
