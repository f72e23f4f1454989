"""Write images/base-debs.toml anew: ``python ci/scripts/base_debs.py``. It is the packages of the Debian base, by hash.

Apt resolves them from Debian's current lists, on Debian or Ubuntu, for each architecture; nothing on this machine is installed. After
the reading of the change, `airbridge-ci seal` seals the file.
"""

from __future__ import annotations

import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from airbridge.ci.images.base import DEBIAN_PACKAGES, DEBIAN_SUITE
from airbridge.ci.images.debs import BASE_FILE
from airbridge.ci.images.specs import ARCHITECTURES
from airbridge.ci.tools import run

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org"
SUITES = (
    f"debian {DEBIAN_SUITE}",
    f"debian {DEBIAN_SUITE}-updates",
    f"debian-security {DEBIAN_SUITE}-security",
)
URI = re.compile(
    rf"^'{MIRROR}/(?P<path>\S+)' (?P<name>[^_]+)_(?P<version>[^_]+)_(?P<architecture>\w+)\.deb \d+ SHA256:(?P<sha256>\w+)$",
    re.MULTILINE,
)
HEADER = """\
# Packages of the base that `airbridge-ci build --base debian` makes where no registry can be reached, by hash. `make base-debs` writes
# this file; `airbridge-ci seal` seals it. Nothing else gets into that base, so an old commit gives the old base, or names what is gone.
"""
DEB = """
[[deb]]
name = "{name}"
version = "{version}"
architecture = "{architecture}"
path = "{path}"
sha256 = "{sha256}"
"""


def resolve(architecture: str, folder: Path) -> list[dict[str, str]]:
    """Return the packages of an architecture's base, by name."""
    for each in (
        "lists/partial",
        "archives/partial",
        "etc/apt.conf.d",
        "etc/preferences.d",
        "etc/trusted.gpg.d",
    ):
        (folder / each).mkdir(parents=True)
    (folder / "status").touch()
    sources = "".join(f"deb [signed-by={KEYS}] {MIRROR}/{suite} main\n" for suite in SUITES)
    (folder / "sources.list").write_text(sources, encoding="utf-8")
    options = {
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::State::extended_states": folder / "extended_states",
        "Dir::Cache": folder,
        "Dir::Etc": folder / "etc",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "Acquire::ForceHash": "SHA256",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    run("apt-get", *words, "update", "-qq")
    written = run(
        "apt-get", *words, "install", "--yes", "--print-uris", "?essential", "apt", *DEBIAN_PACKAGES
    )
    found = [
        {name: unquote(value) for name, value in match.groupdict().items()} for match in URI.finditer(written)
    ]
    return sorted(found, key=lambda deb: deb["name"])


def main() -> None:
    """Write the file."""
    debs = []
    with tempfile.TemporaryDirectory() as scratch:
        for architecture in ARCHITECTURES:
            debs += resolve(architecture, Path(scratch) / architecture)
    unique = {deb["path"]: deb for deb in debs}
    snapshot = f'\nsnapshot = "{datetime.now(tz=UTC):%Y%m%d}T000000Z"\n'
    texts = [
        DEB.format(**deb)
        for deb in sorted(unique.values(), key=lambda deb: (deb["name"], deb["architecture"]))
    ]
    Path(BASE_FILE).write_text(HEADER + snapshot + "".join(texts), encoding="utf-8")
    print(f"{BASE_FILE}: {len(unique)} packages; read the change, then `airbridge-ci seal`")


if __name__ == "__main__":
    main()
