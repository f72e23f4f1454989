"""Derived worker images: a recipe of the checkout on top of the edge worker that a build left in its folder.

A derived image adds system libraries, drivers and tools, and changes nothing of the platform: `problems` names whatever it
has touched. It is part of the release of the image that it was built on, with an SBOM of its own.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import BuildError
from airbridge.ci.images import inventory, sbom
from airbridge.ci.images.assemble import Output, PartRecord, read_records, write_derived
from airbridge.ci.images.build import copy_image, from_storage
from airbridge.ci.images.layout import OPAQUE, WHITEOUT, Layout
from airbridge.ci.images.specs import EDGE_WORKER, Architecture
from airbridge.ci.release.manifest import DerivedName

# Variables that a derived image may not set: they change which code the worker and its tasks run.
_CODE_VARIABLES = re.compile(r"^(AIRBRIDGE_|AIRFLOW_|PYTHON|LD_PRELOAD$|LD_AUDIT$)")
_KEPT_SETTINGS = (
    "User",
    "Entrypoint",
    "Cmd",
    "WorkingDir",
    "StopSignal",
    "Healthcheck",
    "Volumes",
    "OnBuild",
)


@dataclass(frozen=True)
class Recipe:
    """A Dockerfile by its path in the checkout, and the name of its image."""

    dockerfile: str
    name: str

    @classmethod
    def of(cls, checkout: Checkout, file: Path, name: str) -> Recipe:
        """Return the recipe in `file`. Raises BuildError if it is outside the checkout or the name is not free."""
        try:
            TypeAdapter(DerivedName).validate_python(name)
        except ValidationError as error:
            raise BuildError(
                f"--name {name}: must be lower-case words joined by dashes, at most 32 characters, and not "
                "control-plane, edge-worker or worker"
            ) from error
        path = file.resolve()
        if not path.is_relative_to(checkout.root):
            raise BuildError(
                f"{file}: is outside {checkout.root}; a release is built from the files of its commit alone"
            )
        return cls(path.relative_to(checkout.root).as_posix(), name)


@dataclass(frozen=True)
class DerivedBuilder:
    """Builds derived images for one architecture. `work` is scratch space; `report` prints progress."""

    checkout: Checkout
    output: Output
    architecture: Architecture
    work: Path
    report: Callable[[str], None]

    def build(self, recipe: Recipe) -> Layout:
        """Build the image and record it. Raises BuildError, and leaves the output as it was, if it changes the platform's part."""
        record = self._record()
        source = self._source(record.revision, recipe)
        base = Layout(self.output.part(self.architecture) / EDGE_WORKER.name)
        self.report(f"{recipe.name}: on {EDGE_WORKER.name} {base.digest}")
        made = self._buildah(source, recipe, base)
        if found := list(problems(base, made)):
            raise BuildError("\n".join(f"{recipe.dockerfile}: {problem}" for problem in found))
        folder = self.output.part(self.architecture) / recipe.name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(made.folder, folder)
        made = Layout(folder)
        bill = sbom.document(recipe.name, made, inventory.take(made))
        write_derived(self.output, record, recipe.name, recipe.dockerfile, bill)
        self.report(f"{recipe.name}: {made.digest}, {made.compressed_bytes / 1e6:.0f} MB to pull")
        return made

    def _record(self) -> PartRecord:
        records = read_records(self.output)
        if self.architecture not in records:
            raise BuildError(
                f"{self.output.folder}: has no images for {self.architecture}; `airbridge-ci build` makes them"
            )
        return records[self.architecture]

    def _source(self, revision: str, recipe: Recipe) -> Path:
        """Return the recipe's Dockerfile as it is in the commit of the base."""
        shutil.rmtree(self.work, ignore_errors=True)
        file = self.checkout.export(revision, self.work / "source").root / recipe.dockerfile
        if not file.is_file():
            raise BuildError(
                f"{recipe.dockerfile}: is not in commit {revision[:12]}, of which {self.output.folder} was built; "
                "commit it, and run `airbridge-ci build` first"
            )
        return file

    def _buildah(self, dockerfile: Path, recipe: Recipe, base: Layout) -> Layout:
        run = self.checkout.run
        short = base.digest.removeprefix("sha256:")[:12]
        on = f"localhost/airbridge-{EDGE_WORKER.name}:{short}"
        tag = f"localhost/airbridge-{recipe.name}:{short}"
        copy_image(run, f"dir:{base.folder}", f"containers-storage:{on}")
        run(
            "buildah", "build", "--quiet", "--format", "docker", "--no-cache", "--layers", "--timestamp", "0",
            "--omit-history", "--identity-label=false", "--pull=never", "--build-arg", f"BASE_IMAGE={on}",
            "--build-arg", "SOURCE_DATE_EPOCH=0", "--file", dockerfile, "--tag", tag, dockerfile.parent,
        )  # fmt: skip
        return from_storage(run, tag, self.work / "image")


def problems(base: Layout, derived: Layout) -> Iterator[str]:
    """Yield what a derived image has changed that belongs to the platform; nothing if it only adds to its base."""
    below = base.config["rootfs"]["diff_ids"]
    if derived.config["rootfs"]["diff_ids"][: len(below)] != below:
        yield (
            f"is not built on the release's {EDGE_WORKER.name}: its last stage must begin with FROM ${{BASE_IMAGE}}, "
            "after ARG BASE_IMAGE"
        )
        return
    yield from _settings(base.config.get("config", {}), derived.config.get("config", {}))
    protected = _protected(base)
    for layer in derived.layers[len(below) :]:
        with tarfile.open(derived.blob_path(layer["digest"]), "r:*") as packed:
            for member in packed:
                yield from _member(member, protected)
    yield from _packages(base, derived)


def _settings(base: dict[str, object], derived: dict[str, object]) -> Iterator[str]:
    for key in _KEPT_SETTINGS:
        if derived.get(key) != base.get(key):
            yield f"sets {key} to {derived.get(key)!r}; the worker's must stay: {base.get(key)!r}"
    labels, kept = _mapping(derived.get("Labels")), _mapping(base.get("Labels"))
    for name in sorted(kept):
        if labels.get(name) != kept[name]:
            yield f"sets the label {name} to {labels.get(name)!r}; it is the platform's: {kept[name]!r}"
    variables, own = _environment(derived.get("Env")), _environment(base.get("Env"))
    for name in sorted(variables.keys() | own.keys()):
        if name in own and variables.get(name) != own[name]:
            yield f"sets {name} to {variables.get(name)!r}; the worker's must stay: {own[name]!r}"
        elif name not in own and _CODE_VARIABLES.match(name):
            yield f"sets {name}, which changes what the worker runs; give tasks variables with `task_env` of their pool"


def _mapping(value: object) -> dict[str, str]:
    return dict(value) if isinstance(value, dict) else {}


def _environment(value: object) -> dict[str, str]:
    pairs = value if isinstance(value, list) else []
    return dict(str(pair).split("=", 1) for pair in pairs)


def _protected(base: Layout) -> tuple[PurePosixPath, ...]:
    """Return the paths that belong to the platform: its environment, the interpreter below it, and what starts it."""
    prefix = (
        "/usr/local"
        if any(re.match(r"/usr/local/lib/python3\.\d+/os\.py$", p) for p in base.files)
        else "/usr"
    )
    library = re.compile(rf"{prefix}/lib/python3\.\d+(?=/)|{prefix}/bin/python3(\.\d+)?$")
    found = {match[0] for path in base.files if (match := library.match(path))}
    fixed = ("/opt/airbridge", "/usr/bin/tini", "/etc/ld.so.preload", f"{prefix}/bin/python3")
    return tuple(PurePosixPath(path) for path in sorted(found | set(fixed)))


def _member(member: tarfile.TarInfo, protected: tuple[PurePosixPath, ...]) -> Iterator[str]:
    path = PurePosixPath(posixpath.normpath(f"/{member.name}"))
    removes = path.name.startswith(WHITEOUT)
    if path.name == OPAQUE:
        path = path.parent
    elif removes:
        path = path.with_name(path.name.removeprefix(WHITEOUT))
    below = [mine for mine in protected if path.is_relative_to(mine)]
    # A directory above one of them may be written again, but neither removed nor replaced.
    above = [mine for mine in protected if mine.is_relative_to(path) and (removes or not member.isdir())]
    if below or above:
        yield f"{'removes' if removes else 'writes'} {path}, which belongs to the platform"
    if member.isfile() and member.mode & (stat.S_ISUID | stat.S_ISGID):
        yield f"adds {path} with the right to become another user; `chmod a-s {path}` takes it away"


def _packages(base: Layout, derived: Layout) -> Iterator[str]:
    mine = inventory.take(derived).versions("pypi")
    for name, version in inventory.take(base).versions("pypi").items():
        if mine.get(name) != version:
            yield f"has {name} {mine.get(name, 'no more')}; the platform's is {version}"
