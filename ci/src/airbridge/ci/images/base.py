"""Base of the images: the pinned upstream base, or one made here from Debian's packages."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import BuildError
from airbridge.ci.tools import Run

PIN_FILE = "images/base.Dockerfile"
PINNED = re.compile(
    r"^FROM\s+(?P<name>[a-z0-9./-]+):(?P<tag>[\w.-]+)@(?P<digest>sha256:[0-9a-f]{64})\s*$", re.MULTILINE
)
DEBIAN_SUITE = "bookworm"
_DEBIAN_PACKAGES = ("python3", "ca-certificates")
_LEFT_OUT = ("doc", "man", "locale", "info", "lintian")


@dataclass(frozen=True)
class Base:
    """Base image: `reference` is what buildah builds on, `name` what the image's label and the manifest contain."""

    reference: str
    name: str


def pinned(checkout: Checkout) -> Base:
    """The upstream base, by digest, from the one file that names it."""
    found = PINNED.search(checkout.source(PIN_FILE).text)
    if found is None:
        raise BuildError(f"{PIN_FILE}: there must be one line FROM name:tag@sha256:<64 hexadecimal digits>")
    reference = f"{found['name']}:{found['tag']}@{found['digest']}"
    return Base(f"docker.io/library/{reference}" if "/" not in found["name"] else reference, reference)


def debian(run: Run, folder: Path) -> Base:
    """A base from Debian's packages, for where no registry can be reached. The same packages give the same digest."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{DEBIAN_SUITE}.tar"
    if not archive.exists():
        _bootstrap(run, archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    reference = f"localhost/airbridge-base:{digest[:16]}"
    import_archive(run, archive, reference)
    return Base(reference, f"debian-{DEBIAN_SUITE}-packages@sha256:{digest}")


def _bootstrap(run: Run, archive: Path) -> None:
    half = archive.with_suffix(".half.tar")
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _LEFT_OUT]
    # Bytecode with timestamps would be stale in the image, where every file is of 1970.
    hook = '--customize-hook=find "$1/usr/lib/python3" "$1"/usr/lib/python3.* -name __pycache__ -prune -exec rm -rf {} +'
    environment = {
        "SOURCE_DATE_EPOCH": "0",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    run(
        "mmdebstrap", "--variant=apt", f"--include={','.join(_DEBIAN_PACKAGES)}", *excluded, hook,
        DEBIAN_SUITE, half, env=environment,
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
