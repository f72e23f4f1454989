"""Sign-in to Airflow's UI by OpenID Connect: a real api-server, a real issuer on loopback, a browser without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from tests.support import api_server, fleet
from tests.support.airflow_home import pointed_at
from tests.support.api_server import ApiServer
from tests.support.oidc_issuer import Issuer, issuing, ui_rules_toml
from tests.support.postgres import Postgres

from airbridge.control_plane.sign_in.browser import Site
from airbridge.control_plane.sign_in.rules import UiRules
from airbridge.core.exceptions import ConfigurationError

MANAGER = "airbridge.control_plane.sign_in.auth_manager.OidcAuthManager"


@dataclass(frozen=True)
class SignIns:
    """The server and the issuer that it trusts."""

    server: ApiServer
    issuer: Issuer

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.server.url, timeout=30, trust_env=False, follow_redirects=False)

    def walk(self, browser: httpx.Client, page: str = "/dags") -> httpx.Response:
        """Open the login page, sign in at the issuer, and return the answer of the callback."""
        sent = browser.get("/auth/login", params={"next": page})
        assert 303 == sent.status_code, sent.text
        back = httpx.get(sent.headers["location"], trust_env=False).headers["location"]
        return browser.get(back)


@pytest.fixture(scope="module")
def sign_ins(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SignIns]:
    name = postgres.create(postgres_template)
    directory: Path = tmp_path_factory.mktemp("oidc")
    with issuing(secret="hunter/2") as issuer:
        (directory / "secret").write_text("hunter/2\n")
        (directory / "ui.toml").write_text(
            ui_rules_toml(issuer, client_secret_file=str(directory / "secret"))
        )
        with pointed_at(postgres.url(name)) as metadata:
            with metadata.session() as session:
                fleet.seed(session)
            settings = {
                **fleet.settings(directory),
                "AIRFLOW__CORE__AUTH_MANAGER": MANAGER,
                "AIRFLOW__AIRBRIDGE__UI_OIDC_FILE": str(directory / "ui.toml"),
            }
            with api_server.serve(postgres.url(name), directory / "home", settings=settings) as server:
                yield SignIns(server, issuer)
    postgres.drop(name)


def test_signed_in_user_has_role(sign_ins: SignIns) -> None:
    """A user of the issuer gets Airflow's token, with the highest role of the groups, and the page that was asked for."""
    for groups, connections in ((["readers"], 403), (["readers", "operators"], 200), (["owners"], 200)):
        sign_ins.issuer.groups = groups
        with sign_ins.browser() as browser:
            answer = sign_ins.walk(browser)
            assert (303, "/dags") == (answer.status_code, answer.headers["location"])
            bearer = {"Authorization": f"Bearer {browser.cookies['_token']}"}
            assert 200 == browser.get("/api/v2/dags", headers=bearer).status_code
            assert connections == browser.get("/api/v2/connections", headers=bearer).status_code, groups


def test_stranger_to_the_groups_is_refused(sign_ins: SignIns) -> None:
    """A person without any of the groups gets no token."""
    sign_ins.issuer.groups = ["staff"]
    with sign_ins.browser() as browser:
        answer = sign_ins.walk(browser)
        assert (403, "oidc:ann is in none of the groups that may sign in") == (
            answer.status_code,
            answer.text,
        )
        assert "_token" not in browser.cookies


def test_code_is_bound_to_its_browser(sign_ins: SignIns) -> None:
    """A code that somebody else was given signs nobody in: neither with another state, nor without the cookie."""
    sign_ins.issuer.groups = ["owners"]
    with sign_ins.browser() as attacker, sign_ins.browser() as victim, sign_ins.browser() as other:
        sent = attacker.get("/auth/login").headers["location"]
        back = httpx.get(sent, trust_env=False).headers["location"]
        for client in (victim, other):
            client.get("/auth/login")
            assert 400 == client.get(back).status_code
            assert "_token" not in client.cookies
        # The right state with the code of another sign-in: the verifier does not fit.
        own = parse_qs(urlsplit(victim.get("/auth/login").headers["location"]).query)["state"][0]
        mixed = victim.get(
            "/auth/callback", params={"state": own, "code": parse_qs(urlsplit(back).query)["code"][0]}
        )
        assert "invalid_grant" in mixed.text
        assert (403, False) == (mixed.status_code, "_token" in victim.cookies)


def test_passwords_do_not_exist(sign_ins: SignIns) -> None:
    """SimpleAuthManager's own pages and tokens are gone, and no file of passwords is written."""
    with sign_ins.browser() as browser:
        for path in ("/auth/token", "/auth/token/cli"):
            assert browser.post(path, json={"username": "admin", "password": "adminadmin"}).status_code in {
                404,
                405,
            }
        assert 404 == browser.get("/auth/token/login").status_code
    assert "Password for user" not in sign_ins.server.log.read_text()


def test_issuer_that_is_away(sign_ins: SignIns) -> None:
    """The issuer's refusal is passed on, and shows no token."""
    with sign_ins.browser() as browser:
        sent = browser.get("/auth/login").headers["location"]
        state = parse_qs(urlsplit(sent).query)["state"][0]
        answer = browser.get("/auth/callback", params={"state": state, "error": "access_denied"})
        assert (403, True) == (answer.status_code, "access_denied" in answer.text)


@pytest.mark.parametrize(
    "page",
    [
        "https://evil.example/",
        "//evil.example",
        "///evil.example",
        "////evil.example",
        "https:///evil.example",
        "https:/evil.example",
        "https:evil.example",
        "https://airflow.example.com//evil.example",
        "https://airflow.example.com.evil.example/",
        "https://airflow.example.com@evil.example/",
        "https://[",
        "/\\evil.example",
        "\\/evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        " ///evil.example",
        "\x01//evil.example",
        "/" + 1_000 * "x",
        "x",
        "",
    ],
)
def test_foreign_page_is_not_opened(page: str) -> None:
    """After the sign-in the browser stays on the site."""
    site = Site("https://airflow.example.com/ui", "_token", b"")
    assert "https://airflow.example.com/ui/" == site.page(page)


@pytest.mark.parametrize(
    "page", ["/ui/dags?x=1", "/", "https://airflow.example.com/ui/dags", "HTTPS://Airflow.Example.com/ui/"]
)
def test_own_page_is_opened(page: str) -> None:
    """A path, or an address of the site, is where the browser goes after the sign-in."""
    assert page == Site("https://airflow.example.com/ui", "_token", b"").page(page)


def test_airflow_route_leads_to_no_other_site(sign_ins: SignIns) -> None:
    """Airflow's own login route takes `///evil.example` for a path, and passes it on; the sign-in ends on the site."""
    sign_ins.issuer.groups = ["owners"]
    with sign_ins.browser() as browser:
        passed_on = browser.get("/api/v2/auth/login", params={"next": "///evil.example"})
        assert (307, True) == (passed_on.status_code, "evil" in passed_on.headers["location"])
        page = parse_qs(urlsplit(passed_on.headers["location"]).query)["next"][0]
        answer = sign_ins.walk(browser, page)
        assert (303, "") == (answer.status_code, urlsplit(answer.headers["location"]).path.strip("/"))
        assert "evil" not in answer.headers["location"]


def test_faults_of_the_file_are_named(tmp_path: Path) -> None:
    """A role that Airflow does not have is refused by name."""
    file = tmp_path / "ui.toml"
    file.write_text('issuer = "https://x"\naudience = "a"\n[[role]]\nvalue = "g"\nrole = "root"\n')
    with pytest.raises(ConfigurationError, match=r"ui_oidc_file .*role.0.role: Input should be 'viewer'"):
        UiRules.read(file)
