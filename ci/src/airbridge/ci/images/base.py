"""Base of the images: the pinned upstream base, or one made here from Debian's packages."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import httpx

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import BuildError
from airbridge.ci.images import debs
from airbridge.ci.images.specs import Architecture
from airbridge.ci.tools import Run

PIN_FILE = "images/base.Dockerfile"
PINNED = re.compile(
    r"^FROM\s+(?P<name>[a-z0-9./-]+):(?P<tag>[\w.-]+)@(?P<digest>sha256:[0-9a-f]{64})\s*$", re.MULTILINE
)
DEBIAN_SUITE = "bookworm"
#: What is asked of apt; what these need is in images/base-debs.toml.
DEBIAN_PACKAGES = ("python3", "ca-certificates")
_SOURCES = (
    f"http://deb.debian.org/debian {DEBIAN_SUITE} main",
    f"http://deb.debian.org/debian {DEBIAN_SUITE}-updates main",
    f"http://security.debian.org/debian-security {DEBIAN_SUITE}-security main",
)
_LEFT_OUT = ("doc", "man", "locale", "info", "lintian")


@dataclass(frozen=True)
class Base:
    """Base image: `reference` is what buildah builds on, `name` what the image's label and the manifest contain."""

    reference: str
    name: str


def pinned(checkout: Checkout) -> Base:
    """The upstream base, by digest, from the one file that names it."""
    found = _pin(checkout)
    reference = f"{found['name']}:{found['tag']}@{found['digest']}"
    return Base(f"docker.io/library/{reference}" if "/" not in found["name"] else reference, reference)


def python(checkout: Checkout) -> str:
    """Return the upstream base's version of Python, in two parts. Raises BuildError if its tag does not begin with one."""
    tag = _pin(checkout)["tag"]
    found = re.match(r"\d+\.\d+(?=[.-]|$)", tag)
    if found is None:
        raise BuildError(f"{PIN_FILE}: the tag {tag!r} must begin with Python's version, such as 3.12-slim")
    return found[0]


def _pin(checkout: Checkout) -> re.Match[str]:
    found = PINNED.search(checkout.source(PIN_FILE).text)
    if found is None:
        raise BuildError(f"{PIN_FILE}: there must be one line FROM name:tag@sha256:<64 hexadecimal digits>")
    return found


def debian(checkout: Checkout, architecture: Architecture, folder: Path) -> Base:
    """A base of exactly the packages in images/base-debs.toml, for where no registry can be reached.

    The same file gives the same digest. Raises BuildError, which names the package, if one is neither in Debian's pool nor in its archive.
    """
    sealed = checkout.source(debs.BASE_FILE).text.encode()
    archive = folder / f"{DEBIAN_SUITE}-{hashlib.sha256(sealed).hexdigest()[:16]}.tar"
    if not archive.exists():
        shutil.rmtree(folder, ignore_errors=True)
        repository = folder / "repository"
        with httpx.Client(timeout=60) as client:
            packages = debs.of_base(checkout, architecture)
            debs.fetch(packages, repository, client, debs.mirrors(checkout, debs.BASE_FILE))
        _index(checkout.run, repository)
        _bootstrap(checkout.run, repository, archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    reference = f"localhost/airbridge-base:{digest[:16]}"
    import_archive(checkout.run, archive, reference)
    return Base(reference, f"debian-{DEBIAN_SUITE}-packages@sha256:{digest}")


def _index(run: Run, repository: Path) -> None:
    """Make apt see a folder of packages as a repository."""
    entries = []
    for package in sorted(repository.glob("*.deb")):
        content = package.read_bytes()
        place = (
            f"Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}"
        )
        entries.append(f"{run('dpkg-deb', '--field', package).rstrip()}\n{place}\n")
    (repository / "Packages").write_text("\n".join(entries), encoding="utf-8")


def _bootstrap(run: Run, repository: Path, archive: Path) -> None:
    half = archive.with_suffix(".half.tar")
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _LEFT_OUT]
    # Bytecode with timestamps would be stale in the image, where every file is of 1970.
    hook = '--customize-hook=find "$1/usr/lib/python3" "$1"/usr/lib/python3.* -name __pycache__ -prune -exec rm -rf {} +'
    # The folder is of this machine; apt in an image that is derived from this base asks Debian.
    sources = "\\n".join(f"deb {source}" for source in _SOURCES) + "\\n"
    environment = {
        "SOURCE_DATE_EPOCH": "0",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    run(
        "mmdebstrap", "--variant=apt", f"--include={','.join(DEBIAN_PACKAGES)}", *excluded, hook,
        f"--customize-hook=printf '{sources}' > \"$1/etc/apt/sources.list\"", "--hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount",
        # What was fetched by hash needs no signature.
        DEBIAN_SUITE, half, f"deb [trusted=yes allow-insecure=yes] file://{repository} ./", env=environment,
    )  # fmt: skip
    half.rename(archive)


def import_archive(run: Run, archive: Path, reference: str) -> None:
    """Put a root file system into the local storage, as an image of one layer under `reference`."""
    container = run("buildah", "from", "scratch").strip()
    try:
        run("buildah", "add", "--quiet", container, archive, "/")
        run(
            "buildah",
            "config",
            "--env",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            container,
        )
        run(
            "buildah", "commit", "--quiet", "--timestamp", "0", "--identity-label=false", "--omit-history",
            container, reference,
        )  # fmt: skip
    finally:
        run("buildah", "rm", container)
