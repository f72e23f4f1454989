"""`make`'s first steps: the certificates that verify the package index, and `airbridge` on PATH."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

ROOT = Path(__file__).resolve().parents[3]
UV = ROOT / ".tools" / "bin" / "uv"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefiles of a fresh clone, with a uv that behaves as it does before an unknown certificate."""
    for file in (
        ROOT / "Makefile",
        *ROOT.glob("*/*.mk"),
        *ROOT.glob("tests/*/*.mk"),
        ROOT / "pyproject.toml",
    ):
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (tmp_path / "uv.lock").touch()
    uv = tmp_path / ".tools" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(
        '#!/bin/sh\necho "UV_SYSTEM_CERTS=$UV_SYSTEM_CERTS" >&2\n'
        "echo 'error: invalid peer certificate: UnknownIssuer' >&2\nexit 2\n"
    )
    uv.chmod(0o755)
    return tmp_path


def make(checkout: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "MAKE"))}
    return subprocess.run(
        ["make", *words], cwd=checkout, env=own | environment, capture_output=True, text=True, check=False
    )


def test_unknown_issuer_names_the_remedy(checkout: Path) -> None:
    """uv reads the system's certificates, and an error is followed by how to name others."""
    done = make(checkout, "setup")
    assert done.returncode != 0
    assert "UV_SYSTEM_CERTS=1" in done.stderr
    assert "SSL_CERT_FILE=/path/to/ca-bundle.pem" in done.stderr
    assert "UV_SYSTEM_CERTS=0" in make(checkout, "setup", UV_SYSTEM_CERTS="0").stderr


def test_shell_has_airbridge_on_path(checkout: Path) -> None:
    """`make shell` opens the user's shell with .venv/bin first on PATH, and `make setup` names it."""
    stamp = checkout / ".venv" / ".synced"
    stamp.parent.mkdir()
    stamp.touch()
    shell = checkout / "shell"
    shell.write_text('#!/bin/sh\necho "$PATH"\n')
    shell.chmod(0o755)
    done = make(checkout, "-s", "-o", ".venv/.synced", "shell", SHELL=str(shell))
    assert done.stdout.startswith(f"{checkout}/.venv/bin:")
    assert "'make shell'" in make(checkout, "-s", "-o", ".venv/.synced", "setup").stderr


class Index(BaseHTTPRequestHandler):
    """A package index without packages."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def company(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A package index with a certificate of a company's own CA, and that CA's file."""
    ca = trustme.CA()
    file = tmp_path / "company.pem"
    ca.cert_pem.write_to_path(str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}/simple", file
        server.shutdown()


@pytest.mark.skipif(not UV.exists(), reason="needs the uv of `make setup`")
def test_uv_trusts_named_certificates(company: tuple[str, Path], tmp_path: Path) -> None:
    """With the Makefile's setting the pinned uv verifies an index by the certificates that SSL_CERT_FILE names."""
    url, ca_file = company

    def install(**environment: str) -> str:
        command = [str(UV), "pip", "install", "--no-config", "--dry-run", "--target", str(tmp_path / "x")]
        return subprocess.run(
            [*command, "--index-url", url, "no-such-package"],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "UV_SYSTEM_CERTS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        ).stderr

    assert "certificate" in install()
    trusted = install(SSL_CERT_FILE=str(ca_file))
    assert "certificate" not in trusted
    assert "no-such-package" in trusted
