"""A small OpenID Connect issuer on loopback: discovery, keys, the device grant, and every way to misbehave."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "airbridge"
LARGE = 400 * 1024
UI_ROLES = {"readers": "viewer", "operators": "op", "owners": "admin"}


def segment(value: Any) -> str:
    """A part of a JWT."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@dataclass
class Issuer:
    """The issuer's keys and how it behaves."""

    url: str = ""
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65_537, 2_048))
    curve_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    #: In place of the keys: "huge", "slow", "gzip", "away", "moved", "text", "empty".
    trouble: str = ""
    #: JWKs beside its own.
    more_keys: list[dict[str, Any]] = field(default_factory=list)
    #: Issuer that the discovery document names, if not its own.
    claimed: str | None = None
    asked: Counter[str] = field(default_factory=Counter)
    #: Answers of the token endpoint before the ID token.
    pending: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=lambda: ["operators"])
    posted: list[dict[str, str]] = field(default_factory=list)
    #: What browsers asked for, by the code that they were given.
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    #: The client's secret, if it must have one.
    secret: str = ""

    def authorize(self, asked: dict[str, str]) -> str:
        """Sign the user in at once; return where the browser is sent."""
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"

    def redeem(self, form: dict[str, str], authorization: str | None) -> tuple[int, dict[str, Any]]:
        """Answer the token endpoint for a code, which is good once and for its own browser alone."""
        expected = "Basic " + base64.b64encode(f"{AUDIENCE}:{quote(self.secret, safe='')}".encode()).decode()
        if self.secret and authorization != expected:
            return 401, {"error": "invalid_client"}
        asked = self.codes.pop(form["code"], {})
        challenge = segment(hashlib.sha256(form["code_verifier"].encode()).digest())
        if (asked.get("code_challenge"), asked.get("redirect_uri")) != (challenge, form["redirect_uri"]):
            return 400, {"error": "invalid_grant"}
        return 200, {"id_token": self.token(nonce=asked["nonce"])}

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of an honest token; None removes one."""
        now = int(time.time())
        honest = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ann",
            "email": "Ann@example.com",
            "email_verified": True,
            "groups": self.groups,
            "iat": now,
            "exp": now + 300,
            "jti": base64.b32encode(time.monotonic_ns().to_bytes(8, "big")).decode(),
        }
        return {name: value for name, value in (honest | changes).items() if value is not None}

    def token(
        self, header: dict[str, Any] | None = None, key: Any = None, algorithm: str = "RS256", **changes: Any
    ) -> str:
        """An ID token, with these changes of its claims and header."""
        headers = {"kid": "rsa-1", **(header or {})}
        return jwt.encode(self.claims(**changes), key or self.key, algorithm, headers=headers)

    def jwks(self) -> dict[str, Any]:
        """The public keys."""
        one = json.loads(RSAAlgorithm.to_jwk(self.key.public_key())) | {"kid": "rsa-1", "use": "sig"}
        two = json.loads(ECAlgorithm.to_jwk(self.curve_key.public_key())) | {"kid": "ec-1", "alg": "ES256"}
        return {"keys": [one, two, *self.more_keys]}

    def discovery(self) -> dict[str, Any]:
        """The discovery document."""
        return {
            "issuer": self.claimed or self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize",
            "device_authorization_endpoint": f"{self.url}/device",
            "token_endpoint": f"{self.url}/token",
        }


class _Handler(BaseHTTPRequestHandler):
    issuer: Issuer

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self.issuer.asked[self.path] += 1
        if self.path == "/keys":
            self._keys()
        elif self.path == "/.well-known/openid-configuration":
            self._send(200, self.issuer.discovery())
        elif self.path.startswith("/authorize?"):
            asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            self.send_response(302)
            self.send_header("Location", self.issuer.authorize(asked))
            self.end_headers()
        else:
            self._send(404, {})

    def do_POST(self) -> None:
        self.issuer.asked[self.path] += 1
        sent = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.issuer.posted.append({name: values[0] for name, values in sent.items()})
        if self.path == "/device":
            code = {"device_code": "dev-1", "user_code": "WDJB-MJHT", "expires_in": 60, "interval": 0}
            self._send(200, {**code, "verification_uri": f"{self.issuer.url}/activate"})
        elif self.issuer.pending:
            self._send(400, {"error": self.issuer.pending.pop(0)})
        elif "code" in self.issuer.posted[-1]:
            self._send(*self.issuer.redeem(self.issuer.posted[-1], self.headers.get("Authorization")))
        else:
            self._send(200, {"id_token": self.issuer.token(), "token_type": "Bearer", "access_token": "x"})

    def _keys(self) -> None:
        trouble = self.issuer.trouble
        if trouble == "away":
            self.connection.close()
        elif trouble == "slow":
            self._drip()
        elif trouble == "moved":
            self.send_response(302)
            self.send_header("Location", f"{self.issuer.url}/elsewhere")
            self.end_headers()
        elif trouble == "gzip":
            self._send(
                200, gzip.compress(json.dumps(self.issuer.jwks()).encode() + b" " * LARGE * 20), "gzip"
            )
        elif trouble == "huge":
            self._send(200, json.dumps(self.issuer.jwks()).encode() + b" " * LARGE)
        elif trouble == "deep":
            self._send(200, b'{"keys":' + b"[" * 100_000)
        elif trouble == "text":
            self._send(200, b"<html>maintenance</html>")
        else:
            self._send(200, {"keys": []} if trouble == "empty" else self.issuer.jwks())

    def _drip(self) -> None:
        """Send a byte at a time, for longer than anybody waits."""
        self.send_response(200)
        self.send_header("Content-Length", "10000")
        self.end_headers()
        with suppress(OSError):
            for _ in range(300):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)

    def _send(self, status: int, body: Any, encoding: str | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(content)


@contextmanager
def issuing(**more: Any) -> Iterator[Issuer]:
    """A running issuer."""
    issuer = Issuer(**more)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"issuer": issuer}))
    server.daemon_threads = True
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="oidc-issuer")
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def ui_rules_toml(issuer: Issuer, **more: str) -> str:
    """The text of a ``ui_oidc_file`` for this issuer."""
    extra = "".join(f"{name} = {json.dumps(value)}\n" for name, value in more.items())
    roles = "".join(f'[[role]]\nvalue = "{group}"\nrole = "{role}"\n' for group, role in UI_ROLES.items())
    return f'issuer = "{issuer.url}"\naudience = "{AUDIENCE}"\n{extra}{roles}'


def rules_toml(issuer: Issuer, **more: str) -> str:
    """The text of an ``oidc_file`` for this issuer."""
    extra = "".join(f"{name} = {value}\n" for name, value in more.items())
    return f"""
issuer = "{issuer.url}"
audience = "{AUDIENCE}"
{extra}
[[role]]
value = "operators"
scopes = ["workers:*", "tokens:*", "audit:read"]
[[role]]
value = "readers"
scopes = ["workers:read", "policy:read"]
"""
