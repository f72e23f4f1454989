"""A build's output with images of a few kilobytes: the real layout, manifests, SBOMs and release manifest."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from datetime import datetime
from pathlib import Path

from tests.unit.ci.tree import COMMITTED

from airbridge.ci.images import inventory, sbom
from airbridge.ci.images.assemble import Output, PartRecord, assemble
from airbridge.ci.images.layout import VERSION_LINE, Layout, digest_of
from airbridge.ci.images.specs import IMAGES, LICENCE, REPOSITORY, Architecture
from airbridge.ci.parity.facts import Facts
from airbridge.ci.release.manifest import ReleaseVersions

SITE = "opt/airbridge/lib/python3.12/site-packages"
REVISION = "c" * 40


def write_image(
    folder: Path,
    files: dict[str, str],
    labels: dict[str, str],
    user: str = "10001:10001",
    architecture: str = "amd64",
) -> Layout:
    """A one-layer image as skopeo would leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, text in sorted(files.items()):
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    layer = gzip.compress(packed.getvalue(), mtime=0)
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"User": user, "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(packed.getvalue())]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(config),
            "digest": digest_of(config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "size": len(layer),
                "digest": digest_of(layer),
            }
        ],
    }
    (folder / "version").write_text(VERSION_LINE, encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for blob in (layer, config):
        (folder / digest_of(blob).removeprefix("sha256:")).write_bytes(blob)
    return Layout(folder)


def files_of(facts: Facts, image: str) -> dict[str, str]:
    """Airflow, the Task SDK and our own packages as the lock has them, and one Debian package."""
    own = next(each.own_packages for each in IMAGES if each.name == image)
    names = ("apache-airflow-core", "apache-airflow-task-sdk", *own)
    files = {
        f"{SITE}/{name}.dist-info/METADATA": f"Name: {name}\nVersion: {facts.locked_version(name)}\n"
        for name in names
    }
    files["var/lib/dpkg/status"] = (
        "Package: tini\nStatus: install ok installed\nVersion: 0.19.0-1\nArchitecture: amd64\n"
    )
    files["etc/os-release"] = 'VERSION_ID="12"\n'
    return files


def versions_of(facts: Facts) -> ReleaseVersions:
    """Return the versions in the lock and the sources."""
    return ReleaseVersions(
        airbridge=facts.version,
        airflow=facts.locked_version("apache-airflow-core"),
        task_sdk=facts.locked_version("apache-airflow-task-sdk"),
        python="3.12.14",
        protocol=facts.protocol,
    )


def write_build(
    output: Output,
    facts: Facts,
    *,
    base: str,
    revision: str = REVISION,
    extra: dict[str, dict[str, str]] | None = None,
    user: str = "10001:10001",
    labels: dict[str, str] | None = None,
    versions: ReleaseVersions | None = None,
    architecture: Architecture = "amd64",
    committed_at: datetime = COMMITTED,
) -> Output:
    """A whole build. `extra` adds files to an image, `labels` and `user` change both."""
    inside = versions or versions_of(facts)
    said = {
        "org.opencontainers.image.source": REPOSITORY,
        "org.opencontainers.image.licenses": LICENCE,
        "org.opencontainers.image.version": inside.airbridge,
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.base.name": base,
        "io.airbridge.airflow": inside.airflow,
        "io.airbridge.protocol": str(inside.protocol),
    } | (labels or {})
    for image in IMAGES:
        files = files_of(facts, image.name) | (extra or {}).get(image.name, {})
        titled = {"org.opencontainers.image.title": f"airbridge-{image.name}"} | said
        layout = write_image(output.part(architecture) / image.name, files, titled, user, architecture)
        bill = sbom.document(image.name, layout, inventory.take(layout))
        (output.part(architecture) / f"{image.name}.cdx.json").write_bytes(bill)
    record = PartRecord(
        architecture=architecture, revision=revision, committed_at=committed_at, base=base, versions=inside
    )
    (output.part(architecture) / "part.json").write_text(record.model_dump_json(), encoding="utf-8")
    assemble(output)
    return output
