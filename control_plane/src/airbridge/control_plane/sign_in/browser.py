"""Pages of the sign-in to Airflow's UI: one sends the browser to the issuer, one takes it back.

What must be remembered between the two is in a signed cookie, so that another replica may serve the second.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

import jwt
import structlog
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.sign_in.code_grant import Attempt, CodeGrant
from airbridge.core.protocol import RefusalReason

log = structlog.get_logger()

CALLBACK: Final = "/callback"
LOGIN: Final = "/login"
COOKIE: Final = "airbridge_sign_in"
PATIENCE: Final = timedelta(minutes=10)
LONGEST_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Site:
    """Address of Airflow's UI, the cookie in which it takes its token, and the key of our own cookie."""

    url: str
    token_cookie: str
    key: bytes

    @property
    def secure(self) -> bool:
        """Return whether browsers open the UI by https."""
        return self.url.startswith("https://")

    @property
    def cookie_path(self) -> str:
        """Path below which the sign-in's cookie is sent."""
        return f"{urlsplit(self.url).path.rstrip('/')}/auth"

    def page(self, asked: str) -> str:
        """Return the page to open after the sign-in: the one that was asked for if it is of this site, else the first.

        A page of this site begins with the site's address, or with a single slash: browsers read `//`, `///` and backslashes
        as the beginning of another address, and drop control characters and spaces.
        """
        own = urlsplit(self.url)
        origin = f"{own.scheme}://{own.netloc}"
        path = asked[len(origin) :] if asked.lower().startswith(f"{origin}/".lower()) else asked
        inside = path.startswith("/") and not path.startswith("//")
        plain = "\\" not in asked and not any(ord(each) <= 32 for each in asked)
        return asked if inside and plain and len(asked) <= LONGEST_PAGE else self.url.rstrip("/") + "/"


def create(site: Site, grant: CodeGrant, issue: Callable[[str, str], str]) -> FastAPI:
    """Return the application. `issue` makes Airflow's token for a user and a role."""
    app = FastAPI(title="Sign-in by OpenID Connect", openapi_url=None)
    # Its own pages, not only the API's: this application is mounted below Airflow's.
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Unavailable, _unavailable)

    @app.get(LOGIN)
    async def login(next: str = "") -> Response:  # noqa: A002  # the name that Airflow's UI gives it
        attempt = Attempt.begin(site.page(next))
        answer = RedirectResponse(await grant.address(attempt), 303)
        _remember(answer, site, attempt)
        return answer

    @app.get(CALLBACK)
    async def callback(request: Request, state: str = "", code: str = "", error: str = "") -> Response:
        attempt = _recall(site, request.cookies.get(COOKIE, ""))
        if attempt is None or not hmac.compare_digest(attempt.state.encode(), state.encode()):
            detail = "this browser began no such sign-in in the last ten minutes; open Airflow again"
            raise Refused(400, RefusalReason.FORBIDDEN, detail, rule="sign-in state")
        if error or not code:
            detail = f"the issuer refuses the sign-in: {error[:300] or 'it gives no code'}"
            raise Refused(403, RefusalReason.FORBIDDEN, detail, rule="sign-in")
        user = await grant.redeem(code, attempt)
        [role] = user.scopes
        log.info("ui.signed_in", user=user.owner, email=user.email, role=role)
        answer = RedirectResponse(attempt.page, 303)
        # Airflow's UI moves it into local storage, so a script must be able to read it.
        answer.set_cookie(
            site.token_cookie, issue(user.owner, role), secure=site.secure, samesite="lax", max_age=60
        )
        answer.delete_cookie(COOKIE, path=site.cookie_path)
        return answer

    return app


def _remember(answer: Response, site: Site, attempt: Attempt) -> None:
    claims = {**asdict(attempt), "exp": datetime.now(UTC) + PATIENCE}
    answer.set_cookie(
        COOKIE,
        jwt.encode(claims, site.key, "HS256"),
        max_age=int(PATIENCE.total_seconds()),
        path=site.cookie_path,
        secure=site.secure,
        httponly=True,
        # Lax: the issuer's redirect is a navigation from another site.
        samesite="lax",
    )


def _recall(site: Site, cookie: str) -> Attempt | None:
    try:
        claims = jwt.decode(cookie, site.key, ["HS256"], options={"require": ["exp"]})
        return Attempt(*(claims[name] for name in ("state", "nonce", "verifier", "page")))
    except (jwt.PyJWTError, KeyError):
        return None


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101  # registered for it alone
    log.warning("ui.sign_in_refused", status=error.status, rule=error.rule, why=error.detail)
    return PlainTextResponse(error.detail, error.status)


async def _unavailable(_: Request, error: Exception) -> Response:
    assert isinstance(error, Unavailable)  # noqa: S101
    log.warning("ui.sign_in_unavailable", why=str(error))
    return PlainTextResponse(f"{error}; try again", 503, {"Retry-After": f"{error.retry_after:.0f}"})
