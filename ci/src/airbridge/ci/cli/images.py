"""`parity`, `build`, `assemble`, `inspect` and `publish`."""

from __future__ import annotations

import json
import platform
import re
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from airbridge.ci.checkout import Checkout
from airbridge.ci.cli import exit_codes, output
from airbridge.ci.exceptions import BuildError, CiError
from airbridge.ci.images import base as bases
from airbridge.ci.images import host_package as packages
from airbridge.ci.images import inventory, provenance
from airbridge.ci.images.assemble import Output, PartRecord, assemble, write_part
from airbridge.ci.images.build import Builder, require_uv
from airbridge.ci.images.derived import DerivedBuilder, Recipe
from airbridge.ci.images.layout import Layout
from airbridge.ci.images.specs import ARCHITECTURES, MACHINES, Architecture
from airbridge.ci.images.wheelhouse import Target
from airbridge.ci.parity import checks
from airbridge.ci.parity.finding import as_annotations, as_json, as_text
from airbridge.ci.parity.inventory import seal as seals
from airbridge.ci.publish import Publisher, require_published
from airbridge.ci.registry import Registry
from airbridge.ci.release import keys, manifest, signers
from airbridge.ci.tools import run

Root = Annotated[Path, typer.Option("--root", help="the checkout", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="the folder that a build fills")]
Keys = Annotated[
    Path | None, typer.Option("--keys", help="the trusted keys, if not the checkout's", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="the result as JSON")]


class Format(StrEnum):
    """Output format of findings."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


class BaseChoice(StrEnum):
    """Base of the images."""

    PINNED = "pinned"
    DEBIAN = "debian"


def parity(
    root: Root = Path(),
    built: Annotated[Path | None, typer.Option(help="also check this build's output")] = None,
    style: Annotated[
        Format, typer.Option("--format", help="text, json, or github for annotations")
    ] = Format.TEXT,
    as_json_: AsJson = False,
) -> None:
    """Report every place where sources, lock, images, releases, environments, stacks and matrix disagree.

    Example: airbridge-ci parity --format github --built dist
    """
    checkout = Checkout.find(root.resolve())
    findings = checks.check(checkout, Output(built) if built else None)
    show = {Format.TEXT: as_text, Format.JSON: as_json, Format.GITHUB: as_annotations}[
        Format.JSON if as_json_ else style
    ]
    if text := show(findings).rstrip("\n"):
        output.result(text)
    output.report(f"{len(findings)} disagreements" if findings else "all agree")
    if findings:
        raise typer.Exit(exit_codes.DISAGREEMENT)


def seal(root: Root = Path()) -> None:
    """Write the digests of the sealed files (uv.lock and others that tools make) into ci/inventory.toml anew.

    Example: airbridge-ci seal
    """
    changed = seals.renew(Checkout.find(root.resolve()))
    output.report(f"sealed {', '.join(changed)}" if changed else "all seals hold")


def build(
    dockerfile: Annotated[
        Path | None,
        typer.Argument(help="Dockerfile of a derived worker image, instead of the platform's images"),
    ] = None,
    *,
    on: Annotated[
        Path | None, typer.Option("--from", help="the folder of the build that the derived image is added to")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="name of the derived image, if not the Dockerfile's")
    ] = None,
    root: Root = Path(),
    out: Out = Path("dist"),
    revision: Annotated[str, typer.Option(help="the commit to build")] = "HEAD",
    base: Annotated[
        BaseChoice, typer.Option(help="the pinned upstream base, or one made of Debian's packages")
    ] = BaseChoice.PINNED,
    part_only: Annotated[
        bool, typer.Option(help="leave the parts of several machines to `assemble`")
    ] = False,
    as_json_: AsJson = False,
) -> None:
    """Build both images of a commit with buildah, their SBOMs and the unsigned release manifest.

    With a Dockerfile, add the worker image that it derives from them to the build in `--from`, and to its manifest.

    Example: airbridge-ci build --base debian
    """
    checkout = Checkout.find(root.resolve())
    if dockerfile is not None:
        target = _derive(checkout, dockerfile, on, name)
    elif on is not None or name is not None:
        raise typer.BadParameter("--from and --name go with the Dockerfile of a derived image")
    else:
        target = _build(checkout, revision, base, Output(out.resolve()))
    if not part_only:
        _assemble(target, as_json_)


def host_package(
    *,
    root: Root = Path(),
    out: Out = Path("dist/host"),
    revision: Annotated[str, typer.Option(help="the commit to build")] = "HEAD",
    python: Annotated[
        str | None,
        typer.Option(
            help="the version of Python on the hosts, in two parts; bundles that bring packages need the control plane's",
            show_default="that of the images",
        ),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="amd64 or arm64, if not this machine's", show_default=False)
    ] = None,
    as_json_: AsJson = False,
) -> None:
    """Build the package of a worker for hosts with systemd: wheels by the lock's hashes, the installer and the unit.

    Example: airbridge-ci host-package --python 3.12
    """
    checkout = Checkout.find(root.resolve())
    machine = _machine() if architecture is None else _architecture(architecture)
    commit = checkout.run("git", "rev-parse", f"{revision}^{{commit}}", cwd=checkout.root).strip()
    work = checkout.root / "build" / "host"
    shutil.rmtree(work, ignore_errors=True)
    source = checkout.export(commit, work / "source")
    target = Target(python or bases.python(source), machine)
    output.report(f"wheels for Python {target.python}, {machine}")
    found = packages.build(source, commit, target, _uv(checkout), work)
    out.mkdir(parents=True, exist_ok=True)
    archive = shutil.move(found.archive, out.resolve() / found.archive.name)
    entry = {"archive": str(archive), "release": found.release}
    output.result(json.dumps(entry) if as_json_ else entry["archive"])


def _architecture(name: str) -> Architecture:
    for known in ARCHITECTURES:
        if name == known:
            return known
    raise typer.BadParameter(f"{name!r} is no architecture; it is one of {', '.join(ARCHITECTURES)}")


def _build(checkout: Checkout, revision: str, base: BaseChoice, target: Output) -> Output:
    """Build the platform's images for this machine's architecture; return the output that they are part of."""
    commit = checkout.run("git", "rev-parse", f"{revision}^{{commit}}", cwd=checkout.root).strip()
    uv = _uv(checkout)
    work = checkout.root / "build"
    machine = _machine()
    below = (
        bases.debian(checkout, machine, work / "base")
        if base is BaseChoice.DEBIAN
        else bases.pinned(checkout)
    )
    builder = Builder(checkout, commit, below, machine, uv, work / "images", output.report)
    shutil.rmtree(target.part(machine), ignore_errors=True)
    built, versions = builder.build(target.part(machine))
    record = PartRecord(
        architecture=machine,
        revision=commit,
        committed_at=checkout.committed_at(commit),
        base=below.name,
        versions=versions,
    )
    write_part(target, record, built)
    return target


def _derive(checkout: Checkout, dockerfile: Path, on: Path | None, name: str | None) -> Output:
    """Build a derived image; return the output that it is part of."""
    if on is None:
        raise typer.BadParameter("--from names the build that a derived image is added to: --from dist")
    target = Output(on.resolve())
    # `tools.Dockerfile` and `tools/Dockerfile` are both the recipe of `tools`.
    stem = dockerfile.name.removesuffix("Dockerfile").strip(".") or dockerfile.resolve().parent.name
    recipe = Recipe.of(checkout, dockerfile, name or stem)
    DerivedBuilder(checkout, target, _machine(), checkout.root / "build" / "derived", output.report).build(
        recipe
    )
    return target


def assemble_(out: Out = Path("dist"), as_json_: AsJson = False) -> None:
    """Join what several machines built (`dist/parts/<architecture>`) under one digest an image.

    Example: airbridge-ci assemble --out dist
    """
    _assemble(Output(out.resolve()), as_json_)


def _assemble(target: Output, as_json_: bool) -> None:
    made = assemble(target)
    if as_json_:
        output.result(made.text().rstrip("\n"))
        return
    rows = [
        (name, architecture, image.digest, f"{part.compressed_bytes / 1e6:.0f}")
        for name, image in made.release.all_images.items()
        for architecture, part in image.parts.items()
    ]
    output.result_table(("image", "for", "digest", "MB to pull"), rows)
    output.report(f"wrote {target.manifest}; `airbridge-ci sign` signs it")


def inspect(out: Out = Path("dist"), as_json_: AsJson = False) -> None:
    """Sizes, layers and package counts of what was built.

    Example: airbridge-ci inspect --out dist
    """
    rows = []
    for folder in sorted(out.resolve().glob("parts/*/*/manifest.json")):
        layout = Layout(folder.parent)
        found = inventory.take(layout)
        rows.append(
            {
                "image": folder.parent.name,
                "architecture": folder.parent.parent.name,
                "compressed_mb": round(layout.compressed_bytes / 1e6, 1),
                "unpacked_mb": round(sum(file.size for file in layout.files.values()) / 1e6, 1),
                "files": len(layout.files),
                "python_packages": len(found.versions("pypi")),
                "debian_packages": len(found.versions("deb")),
                "layers_mb": [round(layer["size"] / 1e6, 1) for layer in layout.layers],
            }
        )
    if as_json_:
        output.result_json(rows)
        return
    columns = (
        "image",
        "architecture",
        "compressed_mb",
        "unpacked_mb",
        "files",
        "python_packages",
        "debian_packages",
        "layers_mb",
    )
    output.result_table(columns, [[str(row[column]) for column in columns] for row in rows])


def publish(
    registry: Annotated[str, typer.Argument(help="host[:port][/prefix]")],
    *,
    root: Root = Path(),
    out: Out = Path("dist"),
    plain_http: Annotated[bool, typer.Option(help="the registry is on this machine, without TLS")] = False,
    cosign_key: Annotated[str | None, typer.Option(help="sign the images with this cosign key")] = None,
    trusted: Keys = None,
    keyless: Annotated[bool, typer.Option(help="sign the images as this pipeline")] = False,
    as_json_: AsJson = False,
) -> None:
    """Push both images by digest, sign them, attach the SBOMs, and read them back. The manifest must be signed.

    Example: airbridge-ci publish 123456789012.dkr.ecr.us-east-1.amazonaws.com/airbridge-dev --keyless
    """
    checkout, target = Checkout.find(root.resolve()), Output(out.resolve())
    signed = manifest.load(target.manifest)
    signed.verify(keys.load(trusted or checkout.root / keys.FILE))
    remote = Registry(registry, run, plain_http)
    sign = "" if keyless else cosign_key
    signer = signers.pipeline(checkout) if keyless else None
    builder = signer.builder if signer else provenance.BY_HAND
    published = Publisher(remote, target, output.report, sign, builder).publish(signed)
    require_published(remote, signed, signer)
    if as_json_:
        output.result_json([{"image": p.name, "reference": p.reference, "sboms": p.sboms} for p in published])
    else:
        output.result("\n".join(item.reference for item in published))


def verify_published(
    registry: Annotated[str, typer.Argument(help="host[:port][/prefix]")],
    file: Annotated[Path, typer.Argument(help="the release manifest")],
    *,
    root: Root = Path(),
    plain_http: Annotated[bool, typer.Option(help="the registry is on this machine, without TLS")] = False,
    cosign_key: Annotated[
        str | None, typer.Option(help="the images must be signed by this cosign key")
    ] = None,
    keyless: Annotated[
        bool,
        typer.Option(help="the images must be signed by the pipeline that images/release-keys.toml names"),
    ] = False,
    trusted: Keys = None,
    pull_to: Annotated[Path | None, typer.Option(help="also fetch every byte, into this folder")] = None,
) -> None:
    """Check that a registry holds a release: the manifest's signature, every digest, SBOM and provenance, and the bytes behind them.

    Example: airbridge-ci verify-published registry.example.com/airbridge release.json --pull-to /tmp/pulled
    """
    checkout = Checkout.find(root.resolve())
    release = manifest.load(file)
    release.verify(keys.load(trusted or checkout.root / keys.FILE))
    remote = Registry(registry, run, plain_http)
    require_published(remote, release, signers.chosen(checkout, cosign_key, keyless=keyless))
    for name, image in release.release.all_images.items() if pull_to else ():
        remote.pull(name, image.digest, Path(str(pull_to)) / name)
    output.report(f"{registry} holds release {release.release.digest}")


def _uv(checkout: Checkout) -> Path:
    found = checkout.root / ".tools" / "bin" / "uv"
    uv = found if found.exists() else Path(shutil.which("uv") or "")
    if not uv.is_file():
        raise BuildError("uv is not there; `make setup` puts it into .tools")
    pinned = re.search(r"^UV_VERSION\s*:?=\s*(\S+)", checkout.source("Makefile").text, re.MULTILINE)
    require_uv(run, uv, pinned[1] if pinned else "")
    return uv


def _machine() -> Architecture:
    for architecture, machine in MACHINES.items():
        if platform.machine() == machine:
            return architecture
    raise CiError(f"images are built for {', '.join(MACHINES)}; this machine is {platform.machine()}")
