"""`copy` and `registries`: a published release in the registries of another environment, or of regions that came later."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from airbridge.ci import ecr
from airbridge.ci.checkout import Checkout
from airbridge.ci.cli import output
from airbridge.ci.copies import Copier
from airbridge.ci.exceptions import CiError
from airbridge.ci.publish import require_published
from airbridge.ci.registry import Registry
from airbridge.ci.release import keys, manifest, pins, signers
from airbridge.ci.tools import run

Keys = Annotated[
    Path | None, typer.Option("--keys", help="the trusted keys, if not the checkout's", show_default=False)
]


def copy(
    source: Annotated[str, typer.Argument(help="an environment, or host[:port][/prefix] of a registry")],
    target: Annotated[
        str, typer.Argument(help="the same; of an environment, the registries of all of its regions")
    ],
    *,
    root: Annotated[Path, typer.Option("--root", help="the checkout", show_default=False)] = Path(),
    file: Annotated[
        Path | None,
        typer.Option("--manifest", help="the signed release, if not the source environment's own"),
    ] = None,
    plain_http: Annotated[bool, typer.Option(help="the registries are on this machine, without TLS")] = False,
    cosign_key: Annotated[
        str | None, typer.Option(help="the copies must be signed by this cosign key")
    ] = None,
    keyless: Annotated[
        bool,
        typer.Option(help="the copies must be signed by the pipeline that images/release-keys.toml names"),
    ] = False,
    trusted: Keys = None,
    as_json_: Annotated[bool, typer.Option("--json", help="the result as JSON")] = False,
) -> None:
    """Copy a release's images by digest, with signatures and SBOMs; what is there already is left alone. Needs logins of skopeo.

    A target environment's new regions get their ECR repositories first (AWS credentials); its home region's come with its foundation.

    Example: airbridge-ci copy dev staging
    """
    checkout = Checkout.find(root.resolve())
    release = manifest.load(file or _release_of(checkout, source))
    release.verify(keys.load(trusted or checkout.root / keys.FILE))
    signer = signers.chosen(checkout, cosign_key, keyless=keyless)
    origin = Registry(_addresses(checkout, source)[0], run, plain_http)
    rows = []
    for place, address in enumerate(_addresses(checkout, target)):
        if address == origin.address:
            continue
        if place:
            for name in ecr.require_repositories(address, list(release.release.all_images)):
                output.report(f"{address.partition('/')[0]}: made the repository {name}")
        there = Registry(address, run, plain_http)
        rows += [asdict(each) for each in Copier(origin, there, output.report).copy(release)]
        require_published(there, release, signer)
    if as_json_:
        output.result_json(rows)
    else:
        output.result("\n".join(str(row["reference"]) for row in rows))


def registries(
    environment: Annotated[str, typer.Argument(help="the environment")],
    root: Annotated[Path, typer.Option("--root", help="the checkout", show_default=False)] = Path(),
    as_json_: Annotated[bool, typer.Option("--json", help="the result as JSON")] = False,
) -> None:
    """Print the registries of an environment: its home region's, where a release is pushed, then its other regions'.

    Example: airbridge-ci registries dev
    """
    found = ecr.addresses(Checkout.find(root.resolve()), environment)
    if as_json_:
        output.result_json(list(found))
    else:
        output.result("\n".join(found))


def _addresses(checkout: Checkout, which: str) -> tuple[str, ...]:
    """Return the registries of an environment, or the one address itself: an address has a dot, a colon or a slash."""
    if any(mark in which for mark in ".:/"):
        return (which,)
    return ecr.addresses(checkout, which)


def _release_of(checkout: Checkout, source: str) -> Path:
    path = pins.release_path(source)
    if any(mark in source for mark in ".:/"):
        raise CiError(f"{source} is a registry: name the release with --manifest")
    if not checkout.has(path):
        raise CiError(f"{path}: {source} has no release yet; name one with --manifest")
    return checkout.root / path
