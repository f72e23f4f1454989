"""The build: from a commit to two images, their SBOMs and an unsigned release manifest, the same every time.

What makes it reproducible: the files of the commit and not of the work tree; a base by digest; wheels and packages by hash;
no network inside the build; file times of 1970; hash-based bytecode; no history, no builder's label, no logs.
"""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import BuildError
from airbridge.ci.images import debs, inventory, sbom, wheelhouse
from airbridge.ci.images.base import Base
from airbridge.ci.images.layout import Layout, settle
from airbridge.ci.images.specs import IMAGES, Architecture, Image
from airbridge.ci.images.wheelhouse import Target
from airbridge.ci.release.manifest import ReleaseVersions
from airbridge.ci.tools import Run

PROTOCOL_FILE = "core/src/airbridge/core/protocol.py"
Reporter = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """One image for one architecture, as files."""

    image: Image
    layout: Layout
    sbom: bytes
    inventory: inventory.Inventory


@dataclass(frozen=True)
class Builder:
    """Builds a commit. `work` is scratch space; `report` prints progress."""

    checkout: Checkout
    revision: str
    base: Base
    architecture: Architecture
    uv: Path
    work: Path
    report: Reporter

    def build(self, out: Path) -> tuple[list[Built], ReleaseVersions]:
        """Both images under `out/<image>`, and the versions inside."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.report(f"exporting {self.revision[:12]}")
        source = self.checkout.export(self.revision, self.work / "source")
        target = Target(self._python(), self.architecture)
        self.report(f"base {self.base.name} (Python {target.python}, {target.architecture})")
        built = [self._image(source, image, target, out / image.name) for image in IMAGES]
        return built, versions(source, target.python, built)

    def _python(self) -> str:
        """The version of the base's interpreter."""
        run = self.checkout.run
        container = run("buildah", "from", "--quiet", self.base.reference).strip()
        try:
            program = "import platform; print(platform.python_version())"
            return run("buildah", "run", "--network=none", container, "--", "python3", "-c", program).strip()
        finally:
            run("buildah", "rm", container)

    def _image(self, source: Checkout, image: Image, target: Target, folder: Path) -> Built:
        context = self.work / "context" / image.name
        self.report(f"{image.name}: wheels by the lock's hashes")
        others = [self.work / "context" / other.name for other in IMAGES if other is not image]
        wheelhouse.fill(source, image, target, context, self.uv, others=others)
        with httpx.Client(timeout=60) as client:
            packages = debs.listed(source, self.architecture, image.name)
            debs.fetch(packages, context / "debs", client, debs.mirrors(source))
        (context / "tools").mkdir()
        shutil.copy(self.uv.resolve(), context / "tools" / "uv")
        shutil.copy(source.root / "compatibility.toml", context)
        self.report(f"{image.name}: image")
        layout = self._buildah(source, image, context, folder)
        found = inventory.take(layout)
        self.report(f"{image.name}: {layout.digest}, {layout.compressed_bytes / 1e6:.0f} MB to pull")
        return Built(image, layout, sbom.document(image.name, layout, found), found)

    def _buildah(self, source: Checkout, image: Image, context: Path, folder: Path) -> Layout:
        run, tag = self.checkout.run, f"localhost/airbridge-{image.name}:{self.revision[:12]}"
        arguments = {
            "BASE_IMAGE": self.base.reference,
            "BASE_NAME": self.base.name,
            "REVISION": self.revision,
            "SOURCE_DATE_EPOCH": "0",
            "VERSION": package_version(source, image),
            "AIRFLOW_VERSION": locked_version(source, "apache-airflow-core"),
            "PROTOCOL_VERSION": str(protocol_version(source)),
        }
        run(
            "buildah", "build", "--quiet", "--format", "docker", "--no-cache", "--layers", "--network=none",
            "--timestamp", "0", "--omit-history", "--identity-label=false", "--pull=missing",
            *(word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")),
            "--file", source.root / image.dockerfile, "--tag", tag, context,
        )  # fmt: skip
        return from_storage(run, tag, folder)


def from_storage(run: Run, tag: str, folder: Path) -> Layout:
    """Write an image of the local storage into `folder`, which is emptied before, as the registry will have it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # skopeo compresses the layers, which local storage has uncompressed; the registry gets these very bytes.
    copy_image(run, "--dest-compress", "--format", "v2s2", f"containers-storage:{tag}", f"dir:{folder}")
    return settle(folder)


def copy_image(run: Run, *words: str) -> None:
    """Copy an image from or into the local storage, with skopeo. Without root, in the user name space that buildah may make.

    Ubuntu's AppArmor has no profile that lets skopeo make one itself: it fails on hosted runners.
    """
    within = () if os.geteuid() == 0 else ("buildah", "unshare", "--")
    run(*within, "skopeo", "copy", "--quiet", *words)


def versions(source: Checkout, python: str, built: list[Built]) -> ReleaseVersions:
    """Return the versions in the images. Raises BuildError if the images differ."""
    wanted = ("apache-airflow-core", "apache-airflow-task-sdk", "airbridge-core")
    inside = {
        part.image.name: tuple(part.inventory.versions("pypi").get(name) for name in wanted) for part in built
    }
    if len(set(inside.values())) != 1:
        raise BuildError(f"the images carry different versions of {', '.join(wanted)}: {inside}")
    airflow, task_sdk, airbridge = next(iter(inside.values()))
    if not (airflow and task_sdk and airbridge):
        raise BuildError(f"an image lacks one of {', '.join(wanted)}: {inside}")
    protocol = protocol_version(source)
    return ReleaseVersions(
        airbridge=airbridge, airflow=airflow, task_sdk=task_sdk, python=python, protocol=protocol
    )


def locked_version(source: Checkout, name: str) -> str:
    """The version that the lock has of a package."""
    for package in source.source("uv.lock").toml["package"]:
        if package["name"] == name:
            return str(package["version"])
    raise BuildError(f"uv.lock: there is no {name}")


def package_version(source: Checkout, image: Image) -> str:
    """The version of the package that an image carries."""
    return locked_version(source, image.package)


def protocol_version(source: Checkout) -> int:
    """PROTOCOL_VERSION, read without importing anything."""
    for node in ast.parse(source.source(PROTOCOL_FILE).text).body:
        if isinstance(node, ast.Assign) and any(
            getattr(target, "id", "") == "PROTOCOL_VERSION" for target in node.targets
        ):
            return int(ast.literal_eval(node.value))
    raise BuildError(f"{PROTOCOL_FILE}: there is no PROTOCOL_VERSION")


def require_uv(run: Callable[..., str], uv: Path, wanted: str) -> None:
    """BuildError unless uv has the version that the Makefile pins: it writes into the images' metadata."""
    found = run(uv, "--version").split()[1]
    if found != wanted:
        raise BuildError(f"{uv} is version {found}; the Makefile's UV_VERSION is {wanted}")
