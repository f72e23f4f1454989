"""Names, certificates, scopes, tokens and secret files, without a socket."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from airbridge.control_plane.exceptions import (
    AuthorityEnded,
    InvalidIdentity,
    InvalidScope,
    Refused,
    SecretsError,
)
from airbridge.control_plane.identity import rotation, secrets
from airbridge.control_plane.identity.access import AccessTokens
from airbridge.control_plane.identity.ca import WARN_BEFORE, CertificateAuthority
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.identity.spiffe import WorkerName

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
NAME = WorkerName("airbridge.test", "eu-west-1", "default", "w1")


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority.generate("airbridge.test", NOW)


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.fixture(scope="module")
def peer(ca: CertificateAuthority) -> PeerCertificate:
    leaf = ca.issue_worker(csr(ec.generate_private_key(ec.SECP256R1())), NAME, NOW, HOUR)
    return PeerCertificate.from_der(leaf.public_bytes(Encoding.DER))


def test_skewed_clock_accepts_gateway_certificate(ca: CertificateAuthority) -> None:
    """Edge hosts judge the CA's and the gateway's certificates by their own clocks: both reach back a day."""
    pem, _ = ca.issue_server(["localhost"], NOW, HOUR)
    gateway = x509.load_pem_x509_certificate(pem)
    for certificate in (ca.certificate, gateway):
        assert certificate.not_valid_before_utc <= NOW - timedelta(days=1)
        assert certificate.not_valid_after_utc >= NOW + HOUR


# --- Names ---


def test_a_workers_name_survives_its_uri() -> None:
    """The SPIFFE URI of a worker reads back as the same worker."""
    assert WorkerName.parse(NAME.uri, "airbridge.test") == NAME


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://airbridge.test/region/a/pool/b/worker/c",
        "spiffe://airbridge.test/region/a/pool/b",
        "spiffe://airbridge.test/region/a/pool/b/worker/c/d",
        "spiffe://airbridge.test/region/a/pool/b/worker/C",
        "spiffe://airbridge.test/region/../pool/b/worker/c",
        "spiffe://airbridge.test/region/a/pool/b/worker/c\n",
        "spiffe://other.test/region/a/pool/b/worker/c",
    ],
)
def test_foreign_uri_is_refused(uri: str) -> None:
    """A URI of another form, or of another trust domain, is not a worker's name."""
    with pytest.raises(InvalidIdentity):
        WorkerName.parse(uri, "airbridge.test")


# --- Certificates ---


def test_worker_certificate_content(ca: CertificateAuthority, peer: PeerCertificate) -> None:
    """An issued certificate carries the name, the issuer's key id and the requested lifetime."""
    assert (NAME.uri, ca.key_id, NOW + HOUR) == (peer.uri, peer.issuer, peer.not_after)
    assert peer.valid_at(NOW)
    assert not peer.valid_at(NOW + HOUR)


def test_certificates_end_with_their_ca(ca: CertificateAuthority) -> None:
    """A worker's and the gateway's certificate end no later than the CA that issued them, which issues none afterwards."""
    ends = ca.certificate.not_valid_after_utc
    request = csr(ec.generate_private_key(ec.SECP256R1()))
    soon = ends - HOUR / 2
    server, _ = ca.issue_server(["localhost"], soon, HOUR)
    for leaf in (ca.issue_worker(request, NAME, soon, HOUR), x509.load_pem_x509_certificate(server)):
        assert ends == leaf.not_valid_after_utc
    with pytest.raises(AuthorityEnded, match=r"ended at .* 'airbridge ca rotate' makes a new one"):
        ca.issue_worker(request, NAME, ends, HOUR)


def test_ending_ca_is_replaced(tmp_path: Path) -> None:
    """An issuing CA is replaced once it ends soon, if the trusted root's key is in the directory."""
    directory = tmp_path / "secrets"
    secrets.create_all(directory, "airbridge.test", NOW)
    first = secrets.load_ca(directory)
    soon = first.certificate.not_valid_after_utc - WARN_BEFORE
    assert rotation.rotate_ending_ca(directory, "airbridge.test", soon - HOUR) is None
    second = rotation.rotate_ending_ca(directory, "airbridge.test", soon)
    assert second is not None
    assert secrets.load_ca(directory).key_id == second.key_id != first.key_id
    assert first.root == second.root
    (directory / secrets.ROOT_DIRECTORY).rename(tmp_path / "offline")
    assert rotation.rotate_ending_ca(directory, "airbridge.test", soon + timedelta(days=365)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no pem",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "x" * 20_000,
    ],
)
def test_malformed_csr_is_refused(ca: CertificateAuthority, text: str) -> None:
    """Garbage in place of a CSR is an InvalidIdentity, not a crash."""
    with pytest.raises(InvalidIdentity):
        ca.issue_worker(text, NAME, NOW, HOUR)


def test_unsupported_key_is_refused(ca: CertificateAuthority) -> None:
    """Only EC P-256 and Ed25519 keys are certified."""
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(InvalidIdentity, match="P-256 or Ed25519"):
            ca.issue_worker(csr(key), NAME, NOW, HOUR)


def test_a_servers_certificate_is_no_workers(ca: CertificateAuthority) -> None:
    """The gateway's own certificate, presented by a client, names no worker."""
    pem, _ = ca.issue_server(["localhost", "127.0.0.1"], NOW, HOUR)
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    with pytest.raises(InvalidIdentity):
        PeerCertificate.from_der(der)


# --- Scopes ---


@pytest.mark.parametrize(
    ("scope", "action", "name", "attributes", "allowed"),
    [
        ("work:claim queue=eu-*", "work:claim", None, {"queue": "eu-west-1/default"}, True),
        ("work:claim queue=eu-*", "work:claim", None, {"queue": "us-east-1/default"}, False),
        ("work:claim queue=eu-*", "work:claim", None, {}, False),
        ("work:claim queue=eu-*", "work:report", None, {"queue": "eu-west-1/default"}, False),
        ("connections:read eu_*", "connections:read", "eu_warehouse", {}, True),
        ("connections:read eu_*", "connections:read", "us_warehouse", {}, False),
        ("connections:read eu_*", "connections:read", None, {}, False),
        ("connections:read *", "connections:read", "anything", {}, True),
        ("variables:read", "variables:read", "x", {}, True),
        ("variables:read", "variables:write", "x", {}, False),
        ("variables:*", "variables:write", "x", {}, True),
    ],
)
def test_scope_matches_every_part(
    scope: str, action: str, name: str | None, attributes: dict[str, str], allowed: bool
) -> None:
    """Action, name pattern and attributes must all match; what is not named is denied."""
    assert allowed == Scopes.parse([scope]).allow(action, name, **attributes)


def test_no_scope_allows_nothing() -> None:
    """Default deny."""
    assert not Scopes.parse([]).allow("work:claim")


@pytest.mark.parametrize(
    "text",
    ["", "  ", "work", "work:claim a b", "work:claim queue=", "Work:claim", "*:*", "a:b c[d]", "a:b x=1 x=2"],
)
def test_malformed_scope_is_refused(text: str) -> None:
    """A malformed scope is an error, never a wide scope."""
    with pytest.raises(InvalidScope):
        Scopes.parse([text])


@pytest.mark.parametrize(
    ("mine", "theirs", "covered"),
    [
        ("dags:push team-*", "dags:push team-a", True),
        ("dags:push team-*", "dags:push team-*", True),
        ("dags:push team-*", "dags:push *", False),
        ("dags:push team-*", "dags:push", False),
        ("dags:push", "dags:push team-a", True),
        ("workers:drain region=eu-*", "workers:drain", False),
        ("workers:*", "workers:drain", True),
        ("workers:drain", "workers:*", False),
    ],
)
def test_scope_covers_only_narrower_scopes(mine: str, theirs: str, covered: bool) -> None:
    """One scope covers another only if it allows everything the other allows."""
    assert covered == Scopes.parse([mine]).cover(Scopes.parse([theirs]))


# --- Access tokens ---


@pytest.fixture(scope="module")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def test_token_is_valid_with_its_certificate(key: Ed25519PrivateKey, peer: PeerCertificate) -> None:
    """A fresh token of the right worker and certificate carries the worker's scopes."""
    tokens = AccessTokens(key)
    scopes = tokens.verify(tokens.mint(NAME, peer, NOW, HOUR), NAME, peer, NOW)
    assert scopes.allow("work:claim", queue="eu-west-1/default")
    assert not scopes.allow("work:claim", queue="us-east-1/default")


def test_a_token_ends_with_its_time(key: Ed25519PrivateKey, peer: PeerCertificate) -> None:
    """A token that was good an hour ago is refused, also where its signature is remembered."""
    tokens = AccessTokens(key)
    token = tokens.mint(NAME, peer, NOW, HOUR)
    tokens.verify(token, NAME, peer, NOW)
    with pytest.raises(Refused, match="expired"):
        tokens.verify(token, NAME, peer, NOW + HOUR)


def test_token_cache_evicts_oldest(key: Ed25519PrivateKey, peer: PeerCertificate) -> None:
    """The one checked first is forgotten first, and is checked again when it comes back."""
    tokens = AccessTokens(key, remembered=2)
    minted = [tokens.mint(NAME, peer, NOW + timedelta(seconds=n), HOUR) for n in range(3)]
    for _ in range(2):
        for token in minted:
            assert tokens.verify(token, NAME, peer, NOW).allow("work:claim", queue="eu-west-1/default")
            assert tokens.is_current(token)


def test_token_of_other_worker_is_refused(
    ca: CertificateAuthority, key: Ed25519PrivateKey, peer: PeerCertificate
) -> None:
    """A stolen token is useless without the private key it is bound to."""
    tokens = AccessTokens(key)
    token = tokens.mint(NAME, peer, NOW, HOUR)
    leaf = ca.issue_worker(csr(ec.generate_private_key(ec.SECP256R1())), NAME, NOW, HOUR)
    other = PeerCertificate.from_der(leaf.public_bytes(Encoding.DER))
    with pytest.raises(Refused, match="another certificate"):
        tokens.verify(token, NAME, other, NOW)
    with pytest.raises(Refused, match="another worker"):
        tokens.verify(token, WorkerName("airbridge.test", "eu-west-1", "default", "w2"), peer, NOW)


def forgeries(key: Ed25519PrivateKey, peer: PeerCertificate) -> dict[str, str]:
    good = AccessTokens(key).mint(NAME, peer, NOW, HOUR)
    head, body, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    wider = (
        base64.urlsafe_b64encode(json.dumps({**claims, "scopes": ["work:*"]}).encode()).decode().rstrip("=")
    )
    none_head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    return {
        "empty": "",
        "garbage": "a.b.c",
        "altered": f"{head}.{wider}.{signature}",
        "alg none": f"{none_head}.{body}.",
        "wrong key": AccessTokens(Ed25519PrivateKey.generate()).mint(NAME, peer, NOW, HOUR),
        "symmetric": jwt.encode(claims, "x" * 32, algorithm="HS256"),
        "no binding": jwt.encode({k: v for k, v in claims.items() if k != "cnf"}, key, algorithm="EdDSA"),
        "other audience": jwt.encode({**claims, "aud": "x"}, key, algorithm="EdDSA"),
        "other issuer": jwt.encode({**claims, "iss": "x"}, key, algorithm="EdDSA"),
        "scopes are text": jwt.encode({**claims, "scopes": "work:*"}, key, algorithm="EdDSA"),
        "huge": "a" * 100_000,
    }


@pytest.mark.parametrize(
    "name",
    [
        "empty",
        "garbage",
        "altered",
        "alg none",
        "wrong key",
        "symmetric",
        "no binding",
        "other audience",
        "other issuer",
        "scopes are text",
        "huge",
    ],
)
def test_forged_token_is_refused(key: Ed25519PrivateKey, peer: PeerCertificate, name: str) -> None:
    """Forged, altered, unsigned or unbound tokens are refused with 401 and without a hint."""
    with pytest.raises(Refused) as refused:
        AccessTokens(key).verify(forgeries(key, peer)[name], NAME, peer, NOW)
    assert refused.value.status == 401


# --- Secret files ---


def test_secrets_are_never_overwritten(tmp_path: Path) -> None:
    """`create_all` makes private files that load; a second call refuses to overwrite a key."""
    directory = tmp_path / "secrets"
    secrets.create_all(directory, "airbridge.test", NOW)
    loaded = secrets.GatewaySecrets.load(directory)
    assert len(loaded.verify_keys) == 1
    assert {0o600} == {(directory / name).stat().st_mode & 0o777 for name in secrets.ALL_FILES}
    with pytest.raises(SecretsError, match="never overwritten"):
        secrets.create_all(directory, "airbridge.test", NOW)


@pytest.mark.parametrize(
    "name", [name for name in secrets.ALL_FILES if name not in {secrets.SIGNING_KEY, *secrets.PUBLISHING}]
)
def test_faulty_secret_file_is_named(tmp_path: Path, name: str) -> None:
    """The error names the file that is missing or wrong."""
    secrets.create_all(tmp_path, "airbridge.test", NOW)
    (tmp_path / name).write_bytes(b"no key")
    with pytest.raises(SecretsError):
        secrets.GatewaySecrets.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(SecretsError, match=name):
        secrets.GatewaySecrets.load(tmp_path)
