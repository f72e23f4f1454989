"""Who looks at a page, what they may do, and how a browser stays signed in.

Signing in exchanges the token of Airflow's UI for a cookie of the dashboard's own, which scripts cannot read and other
sites cannot send. It holds Airflow's token itself: it ends when that ends, and every request has it verified anew.
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
class Person:
    """A signed-in user, as Airflow's auth manager knows them."""

    user: Any
    name: str
    subject: str
    may_steer: bool
    may_revoke: bool
    may_audit: bool
    form_token: str
    """Proves that a form came from a page of ours: nobody without the cookie can make it."""

    @property
    def actor(self) -> str:
        """How events name this person."""
        return f"user:{self.name}"

    @property
    def rights(self) -> tuple[bool, bool, bool]:
        """What makes a page of theirs differ from another's."""
        return self.may_steer, self.may_revoke, self.may_audit


class NotSignedIn(Exception):  # noqa: N818 - says what was found
    """The browser has no session, or one that has ended."""


class Forbidden(Exception):  # noqa: N818 - says what was found
    """Signed in, and not allowed to."""


async def identify(token: str) -> Person:
    """Return who holds a token of Airflow's. Raises `NotSignedIn`, or `Forbidden` for a user without a role that sees pages."""
    user = await _airflow.user_of_token(token) if token else None
    if user is None:
        raise NotSignedIn
    if not _airflow.may_see(user):
        raise Forbidden("Your Airflow role does not let you see the platform's activity.")
    return Person(
        user=user,
        name=str(user.get_name()),
        subject=_airflow.subject(token),
        may_steer=_airflow.may_steer(user),
        may_revoke=_airflow.may_revoke(user),
        may_audit=_airflow.may_audit(user),
        form_token=hmac.new(token.encode(), _CSRF_PURPOSE, hashlib.sha256).hexdigest(),
    )


async def of_request(request: Request) -> Person:
    """Return who sent a request, by its session cookie alone."""
    return await identify(request.cookies.get(COOKIE, ""))


def bearer(request: Request) -> str:
    """Return the token of an Authorization header; empty if there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def remember(response: Response, request: Request, token: str) -> None:
    """Keep the session in the browser, until it is closed or Airflow's token ends."""
    response.set_cookie(
        COOKIE,
        token,
        path=request.scope.get("root_path", "") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def forget(response: Response, request: Request) -> None:
    """End the session in the browser."""
    response.delete_cookie(COOKIE, path=request.scope.get("root_path", "") or "/")


def check_same_origin(request: Request) -> None:
    """Raise `Forbidden` unless the browser says that a page of this very site sent the request."""
    fetch_site = request.headers.get("sec-fetch-site")
    if fetch_site is not None and fetch_site != "same-origin":
        raise Forbidden("This request came from another site.")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Forbidden("This request came from another site.")
    if origin is None and fetch_site is None:
        raise Forbidden("This request does not say which site it came from.")


def check_form(request: Request, person: Person, given: str) -> None:
    """Raise `Forbidden` unless a form was sent from a page that was made for this session."""
    check_same_origin(request)
    if not hmac.compare_digest(given.encode(), person.form_token.encode()):
        raise Forbidden("The form has expired: go back, reload the page and send it again.")
