"""Environments name images by digest, the digests of the release they pin, and none is ahead of the one before it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from airbridge.ci.exceptions import CiError, ManifestError
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.parity.matrix import load as load_matrix
from airbridge.ci.release import keys, manifest, pins, previous
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.release.pins import Pins
from airbridge.ci.rollout import plan, pools
from airbridge.ci.rollout.plan import Plan
from airbridge.core.compatibility import Matrix, Verdict
from airbridge.core.protocol import Versions


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in infra/environments, images/release-keys.toml and ci/rollout.toml."""
    trusted = _trusted(facts)
    if isinstance(trusted, Finding):
        yield trusted
        return
    order = _plan(facts)
    if isinstance(order, Finding):
        yield order
        return
    releases: dict[str, Manifest] = {}
    for path in facts.checkout.glob(f"{pins.FOLDER}/*.toml"):
        name = Path(path).stem
        found = pins.load(facts.checkout, name)
        yield from _references(found)
        yield from _release(facts, name, found, trusted, releases)
        yield from _waves(facts, name, found, order)
    yield from _order(facts, order, releases)
    yield from _compatible(facts, load_matrix(facts), releases)


def _trusted(facts: Facts) -> Mapping[str, Ed25519PublicKey] | Finding:
    source = facts.checkout.source(keys.FILE)
    try:
        return keys.parse(source.text)
    except ManifestError as error:
        return Finding(
            keys.FILE,
            source.line(r"^\[\[key"),
            "release-keys",
            str(error).replace("\n", "; "),
            "must be a valid list",
        )


def _plan(facts: Facts) -> Plan | Finding:
    try:
        return plan.parse(facts.checkout.source(plan.FILE).text)
    except CiError as error:
        return Finding(plan.FILE, 1, "rollout", str(error).replace("\n", "; "), "must be a valid plan")


def _references(found: Pins) -> Iterator[Finding]:
    path = found.source.path
    for reference in found.references():
        key, image = reference.key, reference.image
        matched = pins.BY_DIGEST.match(reference.text)
        if matched is None:
            expected = f"must be {image}@sha256:<digest>: a tag can be moved"
            yield Finding(path, reference.line, "image-by-digest", f"{key} is {reference.text}", expected)
        elif matched["repository"].rpartition("/")[2] != image:
            actual = f"{key} is an image of {matched['repository']}"
            yield Finding(path, reference.line, "image-name", actual, f"must be {image}")
    yield from _pool_images(found)


def _pool_images(found: Pins) -> Iterator[Finding]:
    """Pools that name an image which the environment does not have."""
    # Before its first release an environment has placeholders alone.
    unreleased = pins.is_placeholder(found.digest("worker"))
    known = found.derived() if unreleased else found.worker_images.derived
    for region, images in pools.images(found).items():
        for pool, image in images.items():
            if image is not None and image not in known:
                line = found.source.line(rf'^image\s*=\s*"{re.escape(str(image))}"')
                actual = f"pool {pool} of {region} names image {image}"
                expected = (
                    f"[images.{pins.DERIVED}] has {', '.join(known) or 'no image'}; a promotion writes it"
                )
                yield Finding(found.source.path, line, "pool-image", actual, expected)


def _release(
    facts: Facts,
    name: str,
    found: Pins,
    trusted: Mapping[str, Ed25519PublicKey],
    releases: dict[str, Manifest],
) -> Iterator[Finding]:
    path = pins.release_path(name)
    if not facts.checkout.has(path):
        yield from _unreleased(found, path)
        return
    source = facts.checkout.source(path)
    try:
        loaded = manifest.parse(source.text, path)
    except ManifestError as error:
        yield Finding(path, 1, "release-file", str(error).replace("\n", "; "), "must be a release manifest")
        return
    releases[name] = loaded
    try:
        loaded.verify(trusted)
    except ManifestError as error:
        yield Finding(
            path,
            source.line(r'"signatures"'),
            "release-signature",
            str(error),
            f"must be signed by a key of {keys.FILE}",
        )
    for key, image in pins.KEYS.items():
        released = loaded.release.images.get(image)
        digest = found.digest(key)
        if released is None:
            yield Finding(
                path,
                source.line(r'"images"'),
                "release-images",
                f"has no image {image}",
                "must have both images",
            )
        elif digest and digest != released.digest:
            actual = f"{key} is {digest[:19]}…"
            expected = f"{path} has {released.digest[:19]}… of {image}: images move by promotion alone"
            yield Finding(found.source.path, found.line(key), "image-of-release", actual, expected)
    yield from _derived_of_release(found, path, loaded)
    for reference, problem in previous.problems(facts.checkout, name, trusted):
        expected = "`airbridge-ci promote` writes it beside the release"
        yield Finding(found.source.path, reference.line, "previous-release", problem, expected)


def _derived_of_release(found: Pins, path: str, loaded: Manifest) -> Iterator[Finding]:
    """Derived images that the environment's file and its release do not share."""
    released, named = loaded.release.derived, found.derived()
    # One that has a repository, and no image yet, is no image of a release.
    waiting = {name for name in named.keys() - released.keys() if pins.is_placeholder(named[name].digest)}
    for name in sorted((released.keys() | named.keys()) - waiting):
        digest = named[name].digest if name in named else "missing"
        expected = released[name].digest if name in released else "no such image"
        if digest != expected:
            line = named[name].line if name in named else found.source.line(r"^\[images")
            yield Finding(
                found.source.path,
                line,
                "image-of-release",
                f"{pins.DERIVED}.{name} is {digest[:19]}",
                f"{path} has {expected[:19]}: images move by promotion alone",
            )


def _unreleased(found: Pins, path: str) -> Iterator[Finding]:
    if found.local:
        return
    for reference in found.references():
        if reference.digest and not pins.is_placeholder(reference.digest):
            actual = f"{reference.key} is {reference.digest[:19]}…, of no release"
            expected = f"there must be {path}, which `airbridge-ci promote` writes"
            yield Finding(found.source.path, reference.line, "image-of-release", actual, expected)


def _waves(facts: Facts, name: str, found: Pins, order: Plan) -> Iterator[Finding]:
    step = order.environment.get(name)
    if step is None:
        if not found.local:
            expected = f"{plan.FILE} must say which environment it follows"
            yield Finding(
                found.source.path,
                found.source.line(r"^name\s*="),
                "rollout",
                f"{name} is in no order",
                expected,
            )
        return
    source = facts.checkout.source(plan.FILE)
    for region in (region for wave in step.waves for region in wave if region not in found.regions):
        line = source.line(r"^waves", after=rf"^\[environment\.{re.escape(name)}\]")
        yield Finding(
            plan.FILE, line, "rollout-wave", f"names {region}", f"{found.source.path} has no such region"
        )


def _order(facts: Facts, order: Plan, releases: Mapping[str, Manifest]) -> Iterator[Finding]:
    for name, step in order.environment.items():
        if not facts.checkout.has(pins.toml_path(name)):
            line = facts.checkout.source(plan.FILE).line(rf"^\[environment\.{re.escape(name)}\]")
            yield Finding(
                plan.FILE, line, "rollout", f"speaks of {name}", f"there is no {pins.toml_path(name)}"
            )
        if step.follows is None or name not in releases:
            continue
        path, own = pins.release_path(name), releases[name].release
        line = facts.checkout.source(path).line(r'"committed_at"')
        before = releases.get(step.follows)
        if before is None:
            yield Finding(
                path,
                line,
                "environment-ahead",
                f"{name} has a release",
                f"{step.follows}, which it follows, has none",
            )
        elif own.committed_at > before.release.committed_at:
            actual = f"{name} is on {own.revision[:12]} of {own.committed_at:%Y-%m-%d %H:%M}"
            expected = f"{step.follows}, which it follows, is only on {before.release.revision[:12]}"
            yield Finding(path, line, "environment-ahead", actual, expected)


def _compatible(facts: Facts, matrix: Matrix | None, releases: Mapping[str, Manifest]) -> Iterator[Finding]:
    """Check that the matrix of the sources allows the versions of an environment."""
    for name, loaded in releases.items() if matrix else ():
        versions = loaded.release.versions
        worker = Versions(
            airbridge=versions.airbridge,
            airflow=versions.airflow,
            task_sdk=versions.task_sdk,
            python=versions.python,
            protocol=versions.protocol,
        )
        judgement = matrix.judge(versions.airbridge, worker) if matrix else None
        if judgement and judgement.verdict is not Verdict.ALLOW:
            path = pins.release_path(name)
            line = facts.checkout.source(path).line(r'"versions"')
            yield Finding(
                path,
                line,
                "release-matrix",
                f"{name} runs what may not work together: {judgement.detail}",
                "the matrix must allow it",
            )
