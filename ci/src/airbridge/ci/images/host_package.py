"""The package of a worker for a host with systemd: its wheels, the installer and the unit, in one archive.

For one version of Python and one architecture. Two builds of a commit have equal contents, and equal bytes if their wheels are.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from airbridge.ci.checkout import Checkout
from airbridge.ci.images import wheelhouse
from airbridge.ci.images.build import package_version
from airbridge.ci.images.specs import EDGE_WORKER
from airbridge.ci.images.wheelhouse import Target

FOLDER: Final = "images/host"
INSTALLER: Final = "install.sh"


@dataclass(frozen=True)
class HostPackage:
    """An archive, and the name of what it installs."""

    archive: Path
    release: str


def build(source: Checkout, revision: str, target: Target, uv: Path, work: Path) -> HostPackage:
    """Build the package of an exported commit, and its archive, in `work`."""
    release = f"{package_version(source, EDGE_WORKER)}-{revision[:12]}-py{target.minor}"
    folder = work / f"airbridge-worker-{release}-{target.architecture}"
    wheelhouse.fill(source, EDGE_WORKER, target, folder, uv)
    for file in sorted((source.root / FOLDER).iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "python-version").write_text(f"{target.minor}\n")
    (folder / "release").write_text(f"{release}\n")
    archive = work / f"{folder.name}.tar.gz"
    archive.write_bytes(_packed(folder))
    return HostPackage(archive, release)


def _packed(folder: Path) -> bytes:
    """Return the archive of a folder, without what differs between machines."""
    content = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=content, mode="wb", compresslevel=1, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as packed,
    ):
        for path, member in _members(folder):
            if path.is_file():
                with path.open("rb") as file:
                    packed.addfile(member, file)
            else:
                packed.addfile(member)
    return content.getvalue()


def _members(folder: Path) -> Iterator[tuple[Path, tarfile.TarInfo]]:
    for path in (folder, *sorted(folder.rglob("*"))):
        member = tarfile.TarInfo(str(path.relative_to(folder.parent)))
        executable = path.is_dir() or path.name == INSTALLER
        member.mode = 0o755 if executable else 0o644
        if path.is_dir():
            member.type = tarfile.DIRTYPE
        else:
            member.size = path.stat().st_size
        yield path, member
