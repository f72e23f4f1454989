"""A build's output: the images hold what the lock lists, and the manifest and the SBOMs list what the images hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from airbridge.ci.exceptions import CiError
from airbridge.ci.images import derived as derivation
from airbridge.ci.images import inventory, sbom, wheelhouse
from airbridge.ci.images.assemble import Output
from airbridge.ci.images.base import DEBIAN_SUITE, pinned
from airbridge.ci.images.inventory import Inventory, normalise
from airbridge.ci.images.layout import Layout, digest_of
from airbridge.ci.images.specs import EDGE_WORKER, IMAGES, LICENCE, REPOSITORY, USER, Image
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.release import manifest
from airbridge.ci.release.manifest import DerivedImage, Manifest, Part

_CORE = {
    "airflow": "apache-airflow-core",
    "task_sdk": "apache-airflow-task-sdk",
    "airbridge": "airbridge-core",
}
_NEVER_ON_THE_EDGE = (
    "airbridge-executor",
    "airbridge-control-plane",
    "psycopg2-binary",
    "asyncpg",
    "airbridge-infra",
    "airbridge-ci",
)


def check(facts: Facts, output: Output) -> Iterator[Finding]:
    """All findings in the folder that `airbridge-ci build` filled."""
    path = str(output.manifest)
    try:
        loaded = manifest.load(output.manifest)
    except CiError as error:
        yield Finding(path, 1, "release-file", str(error).replace("\n", "; "), "run `airbridge-ci build`")
        return
    yield from _sources(facts, path, loaded)
    for image in IMAGES:
        released = loaded.release.images.get(image.name)
        if released is None:
            yield Finding(path, 1, "release-images", f"has no image {image.name}", "must have both images")
            continue
        folder = output.image(image.name)
        if (actual := digest_of((folder / "manifest.json").read_bytes())) != released.digest:
            yield Finding(
                path,
                _line(output.manifest, image.name),
                "image-digest",
                f"{image.name} is {released.digest}",
                f"{folder} holds {actual}",
            )
        for architecture in released.parts:
            yield from _part(facts, output, loaded, image, architecture)
    for name, derived in loaded.release.derived.items():
        yield from _derived(facts, output, loaded, name, derived)


def _derived(
    facts: Facts, output: Output, loaded: Manifest, name: str, derived: DerivedImage
) -> Iterator[Finding]:
    """Findings of a derived image: its base, its bytes, what it changed of the platform, its SBOM."""
    path = str(output.manifest)
    worker = loaded.release.images.get(EDGE_WORKER.name)
    if worker is None or derived.base != worker.digest:
        expected = f"must be on the release's {EDGE_WORKER.name}: run `airbridge-ci build {derived.dockerfile} --from`"
        yield Finding(
            path, _line(output.manifest, name), "derived-base", f"{name} is on {derived.base}", expected
        )
        return
    if not facts.checkout.has(derived.dockerfile):
        yield Finding(
            path,
            _line(output.manifest, name),
            "derived-recipe",
            f"{name} is made by {derived.dockerfile}",
            "there is no such file",
        )
    folder = output.image(name)
    if (actual := digest_of((folder / "manifest.json").read_bytes())) != derived.digest:
        yield Finding(
            path,
            _line(output.manifest, name),
            "image-digest",
            f"{name} is {derived.digest}",
            f"{folder} holds {actual}",
        )
    for architecture, part in derived.parts.items():
        below = worker.parts.get(architecture)
        stored, base = _stored(output, name, part), _stored(output, EDGE_WORKER.name, below)
        if stored is None or base is None:
            missing = name if stored is None else EDGE_WORKER.name
            yield Finding(
                str(folder),
                1,
                "image-digest",
                f"there is no intact {missing} for {architecture}",
                "run `airbridge-ci build`",
            )
            continue
        for problem in derivation.problems(base, stored):
            yield Finding(
                derived.dockerfile, 1, "derived-image", f"{name} {problem}", "a derived image only adds"
            )
        yield from _bill(output, name, architecture, part, stored)


def _stored(output: Output, name: str, part: Part | None) -> Layout | None:
    """Return an image of one architecture; None if the output does not have all of its bytes."""
    if part is None:
        return None
    folder = output.image(name)
    stored = folder / f"{part.digest.removeprefix('sha256:')}.manifest.json"
    if not stored.exists() or digest_of(stored.read_bytes()) != part.digest:
        return None
    layout = _View(folder, stored)
    blobs = [str(blob["digest"]) for blob in (*layout.layers, layout.manifest["config"])]
    paths = {digest: layout.blob_path(digest) for digest in blobs}
    whole = all(path.exists() and digest_of(path.read_bytes()) == digest for digest, path in paths.items())
    return layout if whole else None


def _line(path: Path, text: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines, start=1) if f'"{text}"' in line), 1)


def _sources(facts: Facts, path: str, loaded: Manifest) -> Iterator[Finding]:
    release, head = loaded.release, facts.checkout.revision()
    if release.revision != head:
        line = _line(Path(path), "revision")
        yield Finding(
            path,
            line,
            "build-revision",
            f"is a build of {release.revision[:12]}",
            f"{head[:12]} is checked out; build it",
        )
    for key, name in _CORE.items():
        actual, expected = getattr(release.versions, key), facts.locked_version(name)
        if actual != expected:
            yield Finding(
                path,
                _line(Path(path), key),
                "build-version",
                f"{key} is {actual}",
                f"must be {expected}, as in uv.lock",
            )
    if release.versions.protocol != facts.protocol:
        line = _line(Path(path), "protocol")
        yield Finding(
            path,
            line,
            "build-version",
            f"protocol is {release.versions.protocol}",
            f"must be {facts.protocol}",
        )
    if release.base != pinned(facts.checkout).name and not release.base.startswith(
        f"debian-{DEBIAN_SUITE}-packages@"
    ):
        yield Finding(
            path,
            _line(Path(path), "base"),
            "build-base",
            f"base is {release.base}",
            f"must be {pinned(facts.checkout).name}",
        )


def _part(
    facts: Facts, output: Output, loaded: Manifest, image: Image, architecture: str
) -> Iterator[Finding]:
    part = loaded.release.images[image.name].parts[architecture]
    folder = output.image(image.name)
    stored = folder / f"{part.digest.removeprefix('sha256:')}.manifest.json"
    if not stored.exists() or digest_of(stored.read_bytes()) != part.digest:
        yield Finding(
            str(folder),
            1,
            "image-digest",
            f"does not hold {architecture}'s {part.digest}",
            "run `airbridge-ci build`",
        )
        return
    layout = _View(folder, stored)
    altered = [
        digest
        for digest in (layout.config_digest, *(layer["digest"] for layer in layout.layers))
        if digest_of(layout.blob_path(digest).read_bytes()) != digest
    ]
    for digest in altered:
        yield Finding(
            str(layout.blob_path(digest)),
            1,
            "image-digest",
            "holds other bytes than its name says",
            "run `airbridge-ci build`",
        )
    if altered:
        return
    found = inventory.take(layout)
    yield from _installed(facts, str(folder), image, found)
    yield from _configured(loaded, str(folder), layout, image)
    yield from _bill(output, image.name, architecture, part, layout)


class _View(Layout):
    """One architecture's image inside a folder that holds several."""

    def __init__(self, folder: Path, stored: Path) -> None:
        super().__init__(folder)
        self.__dict__["manifest_bytes"] = stored.read_bytes()


def _installed(facts: Facts, path: str, image: Image, found: Inventory) -> Iterator[Finding]:
    for name, version in found.versions("pypi").items():
        locked = facts.locked_version(name)
        if not locked:
            yield Finding(
                path,
                1,
                "image-package",
                f"{image.name} holds {name} {version}",
                "uv.lock has no such package",
            )
        elif locked != version:
            yield Finding(
                path, 1, "image-package", f"{image.name} holds {name} {version}", f"uv.lock has {locked}"
            )
    for name in image.own_packages:
        if normalise(name) not in found.versions("pypi"):
            yield Finding(path, 1, "image-package", f"{image.name} does not hold {name}", "must")
    for name in sorted(set(wheelhouse.left_out(facts.checkout, image)) & found.versions("pypi").keys()):
        yield Finding(
            path, 1, "image-package", f"{image.name} holds {name}", f"{image.contents} leaves it out"
        )
    if image.name == "edge-worker":
        for name in _NEVER_ON_THE_EDGE:
            if name in found.versions("pypi"):
                yield Finding(
                    path, 1, "image-package", f"{image.name} holds {name}", "an edge host must not have it"
                )


def _configured(loaded: Manifest, path: str, layout: Layout, image: Image) -> Iterator[Finding]:
    config = layout.config.get("config", {})
    if config.get("User") != f"{USER}:{USER}":
        yield Finding(
            path, 1, "image-user", f"runs as {config.get('User') or 'root'}", f"must be {USER}:{USER}"
        )
    labels = config.get("Labels") or {}
    for label, expected in (
        ("org.opencontainers.image.title", f"airbridge-{image.name}"),
        ("org.opencontainers.image.source", REPOSITORY),
        ("org.opencontainers.image.licenses", LICENCE),
        ("org.opencontainers.image.version", loaded.release.versions.airbridge),
        ("org.opencontainers.image.revision", loaded.release.revision),
        ("org.opencontainers.image.base.name", loaded.release.base),
        ("io.airbridge.airflow", loaded.release.versions.airflow),
        ("io.airbridge.protocol", str(loaded.release.versions.protocol)),
    ):
        if labels.get(label) != expected:
            yield Finding(path, 1, "image-label", f"{label} is {labels.get(label)}", f"must be {expected}")


def _bill(output: Output, name: str, architecture: str, part: Part, layout: Layout) -> Iterator[Finding]:
    found = inventory.take(layout)
    path = output.sbom(name, architecture)
    content = path.read_bytes() if path.exists() else b""
    if digest_of(content) != part.sbom:
        yield Finding(
            str(path), 1, "sbom", f"is {digest_of(content)[:19]}…", f"the manifest says {part.sbom[:19]}…"
        )
        return
    listed, there = sbom.packages(content), {(p.kind, p.name, p.version) for p in found.packages}
    for kind, package, version in sorted(listed ^ there):
        lists = "lists" if (kind, package, version) in listed else "does not list"
        actual = f"{lists} {kind} {package} {version}"
        yield Finding(str(path), _line_of(content, package), "sbom", actual, "must list what is installed")
    if listed == there and content != sbom.document(name, layout, found):
        yield Finding(str(path), 1, "sbom", "has other hashes or edges", "must be what the image gives")


def _line_of(content: bytes, name: str) -> int:
    wanted = json.dumps(name)
    lines = content.decode().splitlines()
    return next((number for number, line in enumerate(lines, start=1) if wanted in line), 1)
