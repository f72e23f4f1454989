"""Sign-in of operators by OpenID Connect: a real issuer on loopback and its attacker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.gateway.world import World, running
from tests.security.attacks.sign_ins import FORGERIES, SESSIONS, SignIns
from tests.support.airflow_home import pointed_at
from tests.support.oidc_issuer import AUDIENCE, Issuer, issuing, rules_toml
from tests.support.postgres import Postgres
from typer.testing import CliRunner

from airbridge.control_plane.cli import app
from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.sign_in import key_set
from airbridge.control_plane.sign_in.key_set import KeySet
from airbridge.control_plane.sign_in.rules import SignInRules
from airbridge.core.exceptions import ConfigurationError

ROOT = "/operator/v1"


@pytest.fixture(scope="module")
def sign_ins(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SignIns]:
    """A gateway that trusts an issuer."""
    name = postgres.create(postgres_template)
    directory = tmp_path_factory.mktemp("gateway")
    with issuing() as issuer:
        (directory / "oidc.toml").write_text(rules_toml(issuer))
        with (
            pointed_at(postgres.url(name)) as metadata,
            running(metadata, directory, oidc_file=directory / "oidc.toml") as world,
        ):
            yield SignIns(world, issuer)
    postgres.drop(name)


@pytest.fixture(scope="module")
def world(sign_ins: SignIns) -> World:
    """Its gateway."""
    return sign_ins.world


def test_session_is_an_ordinary_token(sign_ins: SignIns) -> None:
    """An ID token gives a token of an hour with the scopes of the groups, owned by the subject, audited and revocable."""
    made = sign_ins.post(sign_ins.issuer.token(groups=["staff", "operators", "readers"])).json()
    assert (made["owner"], made["scopes"]) == (
        "oidc:ann",
        ["workers:*", "tokens:*", "audit:read", "workers:read", "policy:read"],
    )
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now().astimezone()
    assert timedelta(minutes=59) < left <= timedelta(minutes=60)
    signed_in = sign_ins.world.audited("operator.signed_in")[-1]
    assert (signed_in.actor, signed_in.detail["token"], signed_in.detail["email"]) == (
        "operator:oidc:ann",
        made["id"],
        "Ann@example.com",
    )
    with sign_ins.world.operator(made["token"]) as operator:
        assert operator.get(f"{ROOT}/workers").status_code == 200
        assert operator.put(f"{ROOT}/dags/any", content=b"x").status_code == 403
        rows = operator.get(f"{ROOT}/audit", params={"token": made["id"]}).json()["rows"]
        assert {"operator.signed_in", "token.created", "request.refused"} == {row["event"] for row in rows}
        assert operator.delete(f"{ROOT}/tokens/{made['id']}").status_code == 200
        assert operator.get(f"{ROOT}/workers").status_code == 401


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [("key", "RS512", "rsa-1"), ("key", "PS256", "rsa-1"), ("curve_key", "ES256", "ec-1")],
)
def test_key_types_are_accepted(sign_ins: SignIns, key: str, algorithm: str, kid: str) -> None:
    """Both kinds of key sign in, each with its own algorithms."""
    issuer = sign_ins.issuer
    token = issuer.token(header={"kid": kid}, key=getattr(issuer, key), algorithm=algorithm)
    assert sign_ins.post(token).status_code == 200


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__.strip("_"))
def test_forgery_gives_no_session(sign_ins: SignIns, forge: Callable[[Issuer], Iterator[str]]) -> None:
    """No forged, foreign, old or malformed token gives a session; each is refused, audited, and never an error."""
    before, refusals = sign_ins.sessions(), 0
    for token in forge(sign_ins.issuer):
        answer = sign_ins.post(token)
        assert answer.status_code in {400, 401}, (token, answer.text)
        refusals += 1
    assert sign_ins.sessions() == before
    assert refusals
    assert sign_ins.world.audited("request.refused")[-1].actor == "anonymous"


def test_no_group_no_session(sign_ins: SignIns) -> None:
    """A valid user without a group of the table is refused by name; group names match exactly."""
    before = sign_ins.sessions()
    for groups in ([], ["staff"], ["Operators"], ["operators "], "operatorsx", {"operators": 1}, 5, None):
        answer = sign_ins.post(sign_ins.issuer.token(groups=groups))
        assert answer.status_code == 403, groups
        assert "oidc:ann is in none of the groups" in answer.json()["detail"]
    assert sign_ins.sessions() == before


def test_token_is_used_once(sign_ins: SignIns) -> None:
    """An ID token gives one session, of concurrent requests too, and none after the session was revoked."""
    token = sign_ins.issuer.token()
    before = sign_ins.sessions()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: sign_ins.post(token), range(16)))
    assert sorted({answer.status_code for answer in answers}) == [200, 401]
    assert sign_ins.sessions() == before + 1
    (made,) = (answer.json() for answer in answers if answer.status_code == 200)
    with sign_ins.world.operator(made["token"]) as operator:
        assert operator.delete(f"{ROOT}/tokens/{made['id']}").status_code == 200
    again = sign_ins.post(token)
    assert (again.status_code, "used before" in again.text) == (401, True)


def test_token_is_refused_after_its_lifetime(sign_ins: SignIns) -> None:
    """A token that was kept is worth nothing when its time, or ten minutes, are over."""
    short, long = sign_ins.issuer.token(), sign_ins.issuer.token(exp=int(time.time()) + 86_400)
    sign_ins.world.clock.ahead = timedelta(minutes=12)
    try:
        assert "expired" in sign_ins.post(short).json()["detail"]
        assert "it must be at most 600 s old" in sign_ins.post(long).json()["detail"]
    finally:
        sign_ins.world.clock.ahead = timedelta(0)


def test_nonce_binds_the_token(sign_ins: SignIns) -> None:
    """A token with a nonce is accepted from the one who asked for it alone."""
    assert sign_ins.post(sign_ins.issuer.token(nonce="n-1"), nonce="n-1").status_code == 200
    assert sign_ins.post(sign_ins.issuer.token(nonce="n-1"), nonce="n-2").status_code == 401


def test_requests_are_bounded(sign_ins: SignIns) -> None:
    """Bodies have the size of a token, and fields that are not known are refused."""
    with sign_ins.world.operator(None) as stranger:
        for body, status in (
            (b"x" * 25_000, 413),
            (b"[" * 20_000, 413),
            (b"{}", 400),
            (b'{"id_token": 5}', 400),
            (b'{"id_token": "a.b.c", "scopes": ["tokens:*"]}', 400),
        ):
            assert stranger.post(SESSIONS, content=body).status_code == status
        assert stranger.get(SESSIONS).json() == {
            "issuer": sign_ins.issuer.url,
            "client_id": AUDIENCE,
            "scope": "openid",
        }


def test_unknown_keys_do_not_reach_the_issuer(sign_ins: SignIns) -> None:
    """Key ids that a stranger makes up cost the issuer one question in half a minute, and operators nothing."""
    issuer = sign_ins.issuer
    assert sign_ins.post(issuer.token()).status_code == 200
    issuer.asked.clear()
    tokens = [issuer.token(header={"kid": f"made-up-{number}"}) for number in range(100)]
    with ThreadPoolExecutor(8) as threads:
        assert {401} == {answer.status_code for answer in threads.map(sign_ins.post, tokens)}
    assert issuer.asked["/keys"] <= 1
    assert sign_ins.post(issuer.token()).status_code == 200


def test_silent_issuer_takes_no_thread(postgres: Postgres, postgres_template: str, tmp_path: Path) -> None:
    """While an issuer drips its keys, sign-ins wait without threads: a revocation is answered at once."""
    name = postgres.create(postgres_template)
    with issuing(trouble="slow") as issuer:
        (tmp_path / "oidc.toml").write_text(rules_toml(issuer))
        with (
            pointed_at(postgres.url(name)) as metadata,
            running(metadata, tmp_path, oidc_file=tmp_path / "oidc.toml") as world,
            world.operator(world.access_token("revocations:*")) as operator,
            ThreadPoolExecutor(100) as threads,
        ):
            stage = SignIns(world, issuer)
            waiting = [threads.submit(_patient, stage) for _ in range(100)]
            time.sleep(1.0)
            began = time.monotonic()
            asked = {"kind": "pool", "value": "eu-west-1/gpu", "reason": "test"}
            assert operator.post(f"{ROOT}/revocations", json=asked).status_code == 200
            assert time.monotonic() - began < 2.0
            answers = [each.result(60) for each in waiting]
            assert {503} == set(answers)
            assert issuer.asked["/keys"] == 1
    postgres.drop(name)


def _patient(stage: SignIns) -> int:
    with stage.world.operator(None) as stranger:
        stranger.timeout = 60
        return stranger.post(SESSIONS, json={"id_token": stage.issuer.token()}).status_code


def test_without_a_file_nobody_signs_in(postgres: Postgres, postgres_template: str, tmp_path: Path) -> None:
    """A gateway without the setting has no sign-in."""
    name = postgres.create(postgres_template)
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, tmp_path) as world,
        world.operator(None) as it,
    ):
        for answer in (it.get(SESSIONS), it.post(SESSIONS, json={"id_token": "a.b.c"})):
            assert (answer.status_code, "oidc_file is not set" in answer.text) == (404, True)
    postgres.drop(name)


class Moved:
    """Time that a test moves on."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def _rules(issuer: Issuer, **more: str) -> SignInRules:
    import tomllib

    return SignInRules.model_validate(tomllib.loads(rules_toml(issuer, **more)))


def _ask(keys: KeySet, kid: str = "rsa-1") -> Any:
    try:
        return asyncio.run(keys.find(kid))
    except (Refused, Unavailable) as error:
        return type(error)


@pytest.mark.parametrize("trouble", ["huge", "slow", "gzip", "away", "moved", "text", "deep", "empty"])
def test_troubled_issuer(trouble: str) -> None:
    """Keys that are huge, slow, compressed, elsewhere or none are not read, and known ones are used for an hour."""
    with issuing() as issuer:
        clock = Moved()
        keys = KeySet(_rules(issuer), monotonic=clock)
        fresh = KeySet(_rules(issuer), monotonic=clock)
        assert _ask(keys).algorithms
        issuer.trouble = trouble
        began = time.monotonic()
        assert _ask(fresh) is Unavailable
        assert time.monotonic() - began < key_set.FETCH_SECONDS + 2
        asked = issuer.asked["/keys"]
        assert _ask(fresh) is Unavailable
        assert issuer.asked["/keys"] == asked
        clock.now += key_set.STALE_SECONDS - 1
        assert _ask(keys).algorithms
        clock.now += 2 + key_set.PAUSE_SECONDS
        assert _ask(keys) is Unavailable
        issuer.trouble = ""
        clock.now += key_set.PAUSE_SECONDS
        assert _ask(keys).algorithms


def test_withdrawn_key_is_refused() -> None:
    """A new key is known after half a minute, a withdrawn one refused after ten."""
    with issuing() as issuer:
        clock = Moved()
        keys = KeySet(_rules(issuer), monotonic=clock)
        assert _ask(keys).algorithms
        issuer.more_keys = [issuer.jwks()["keys"][0] | {"kid": "rsa-2"}]
        assert _ask(keys, "rsa-2") is Refused
        clock.now += key_set.PAUSE_SECONDS
        assert _ask(keys, "rsa-2").algorithms
        issuer.more_keys = []
        clock.now += key_set.FRESH_SECONDS
        assert _ask(keys, "rsa-2") is Refused


def test_unusable_keys_are_left_out() -> None:
    """Symmetric, private, short and ambiguous keys, and keys for encryption, verify nothing."""
    with issuing() as issuer:
        own = issuer.jwks()["keys"][0]
        issuer.more_keys = [
            {"kid": "oct", "kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
            own | {"kid": "enc", "use": "enc"},
            own | {"kid": "hs", "alg": "HS256"},
            own | {"kid": "private", "d": own["n"]},
            own | {"kid": "short", "n": own["n"][:170]},
            own | {"kid": "broken", "n": "*"},
            own | {"kid": "twice"},
            own | {"kid": "twice"},
            {"kty": "EC", "crv": ["P-256"], "kid": "list"},
            "text",
        ]
        keys = KeySet(_rules(issuer), monotonic=Moved())
        assert _ask(keys).algorithms
        for kid in ("oct", "enc", "hs", "private", "short", "broken", "twice", "list"):
            assert _ask(keys, kid) is Refused, kid


def test_discovery_is_of_the_issuer() -> None:
    """A discovery document of another issuer is not followed."""
    with issuing() as issuer:
        issuer.claimed = "https://evil.example"
        assert _ask(KeySet(_rules(issuer), monotonic=Moved())) is Unavailable
        assert issuer.asked["/keys"] == 0
        assert _ask(KeySet(_rules(issuer, jwks_url=f'"{issuer.url}/keys"'), monotonic=Moved())).algorithms


def test_email_must_be_verified(sign_ins: SignIns) -> None:
    """With addresses as owners, an unverified one is refused, and its case does not matter."""
    from airbridge.control_plane.sign_in import id_token

    issuer = sign_ins.issuer
    rules = _rules(issuer, owner_claim='"email"', require_nonce="true")
    keys = KeySet(rules, monotonic=Moved())

    def owner(**claims: Any) -> str:
        token = issuer.token(nonce="n", **claims)
        header = id_token.read_header(token)
        return id_token.verify(
            token, header, _ask(keys), rules, nonce="n", now=datetime.now().astimezone()
        ).owner

    assert owner() == "oidc:ann@example.com"
    for verified in (None, False, "true", 1):
        with pytest.raises(Refused, match="has not verified"):
            owner(email_verified=verified)
    token = issuer.token()
    with pytest.raises(Refused, match="nonce"):
        id_token.verify(
            token, id_token.read_header(token), _ask(keys), rules, nonce="n", now=datetime.now().astimezone()
        )


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ('issuer = "http://login.example.com"', "must be an https URL"),
        ('issuer = "https://user:pw@login.example.com"', "must be an https URL"),
        ('issuer = "https://ok.example"\nsession_minutes = 100000', "session_minutes"),
        ('issuer = "https://ok.example"\nkeys = "x"', "keys"),
        (
            'issuer = "https://ok.example"\n[[role]]\nvalue = "x"\nscopes = ["nonsense"]',
            "should be <resource>:<action>",
        ),
        ("issuer = ", "TOML"),
    ],
)
def test_file_is_checked(tmp_path: Path, line: str, right: str) -> None:
    """A gateway does not start with a file that it cannot follow; the error names setting, fault and what is right."""
    roles = '\n[[role]]\nvalue = "a"\nscopes = ["workers:read"]\n'
    (tmp_path / "oidc.toml").write_text(f'audience = "a"\n{line}{roles}')
    with pytest.raises(ConfigurationError, match="oidc_file") as caught:
        SignInRules.read(tmp_path / "oidc.toml")
    assert right in str(caught.value)


def _login(sign_ins: SignIns, folder: Path, *more: str) -> Any:
    (folder / "ca.pem").write_text(sign_ins.world.ca.certificate_pem)
    connection = ["--url", sign_ins.world.operator_url, "--ca-file", str(folder / "ca.pem")]
    return CliRunner().invoke(app.build(), ["login", *connection, *more])


def test_login_with_a_browser(sign_ins: SignIns, tmp_path: Path) -> None:
    """``airbridge login`` shows a code, waits for the person, and writes the token for its owner alone."""
    issuer = sign_ins.issuer
    issuer.pending = ["authorization_pending", "authorization_pending"]
    out = tmp_path / "token"
    out.write_text("older")
    out.chmod(0o644)
    shown = _login(sign_ins, tmp_path, "--out", str(out))
    assert shown.exit_code == 0, shown.output
    assert f"Open {issuer.url}/activate and check the code WDJB-MJHT" in shown.stderr
    assert out.stat().st_mode & 0o777 == 0o600
    assert "abo_" not in shown.output
    with sign_ins.world.operator(out.read_text().strip()) as operator:
        assert operator.get(f"{ROOT}/workers").status_code == 200
    assert {posted["client_id"] for posted in issuer.posted} == {AUDIENCE}
    assert len(issuer.posted[0]["nonce"]) > 40


def test_denied_login(sign_ins: SignIns, tmp_path: Path) -> None:
    """A person who declines, and an issuer whose code ran out, end the command with the issuer's reason."""
    for error in ("access_denied", "expired_token"):
        sign_ins.issuer.pending = [error]
        result = _login(sign_ins, tmp_path)
        assert isinstance(result.exception, Refused)
        assert error in str(result.exception)


def test_login_with_an_id_token(sign_ins: SignIns, tmp_path: Path) -> None:
    """A given ID token, with its nonce, signs in without a browser; a missing file is named."""
    (tmp_path / "id").write_text(sign_ins.issuer.token(nonce="n-9") + "\n")
    shown = _login(sign_ins, tmp_path, "--id-token-file", str(tmp_path / "id"), "--nonce", "n-9")
    assert shown.exit_code == 0, shown.output
    with sign_ins.world.operator(shown.stdout.split()[-1]) as operator:
        assert operator.get(f"{ROOT}/workers").status_code == 200
    missing = _login(sign_ins, tmp_path, "--id-token-file", str(tmp_path / "none"))
    assert isinstance(missing.exception, ConfigurationError)
