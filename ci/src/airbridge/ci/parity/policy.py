"""Policy of the inventory: what every environment of a tier must meet, and what no two environments may share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from airbridge.ci.checkout import Source
from airbridge.ci.exceptions import CiError, ManifestError
from airbridge.ci.images.specs import CONTROL_PLANE, EDGE_WORKER
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.parity.inventory import registry
from airbridge.ci.parity.inventory.registry import Policy, Registry
from airbridge.ci.release import manifest, pins
from airbridge.ci.release.manifest import Release
from airbridge.ci.rollout import plan
from airbridge.ci.rollout.plan import Plan, Step

#: A Graviton instance type has a "g" after the number of its generation: m7g, c7gn, im4gn; g5g. The first was a1.
_GRAVITON = re.compile(r"^(?:a\d|[a-z]+\d+g[a-z]*)\.")
#: The control plane's Fargate tasks.
_CONTROL_PLANE_ARCHITECTURE = "arm64"
_TIERS = {"dev": "development", "staging": "staging", "prod": "production"}


@dataclass(frozen=True)
class Environment:
    """One environment's file, and the release beside it."""

    name: str
    source: Source
    release: Release | None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The file as TOML."""
        return self.source.toml

    @property
    def tier(self) -> str:
        """Its tier."""
        return str(self.settings.get("tier", ""))

    @property
    def local(self) -> bool:
        """Return whether this is the emulator's."""
        return self.tier == pins.LOCAL_TIER

    def finding(self, key: str, check: str, actual: str, expected: str, after: str | None = None) -> Finding:
        """A finding on the line of a key."""
        line = self.source.line(rf"^{re.escape(key)}\s*=", after=after)
        return Finding(self.source.path, line, check, actual, expected)


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in infra/environments and ci/rollout.toml."""
    known = registry.load(facts.checkout)
    environments = [_environment(facts, path) for path in facts.checkout.glob(f"{pins.FOLDER}/*.toml")]
    yield from _named(facts, environments)
    yield from _accounts(known, environments)
    try:
        order = plan.parse(facts.checkout.source(plan.FILE).text)
    except CiError:
        return  # `environments` reports it
    for environment in environments:
        yield from _tier(known, environment, order)
        if environment.local:
            yield from _local(environment)
        elif (policy := known.policy.get(environment.tier)) is not None:
            yield from _pace(facts, environment, order.environment.get(environment.name), policy)
            yield from _release(environment, policy)
    yield from _unlike(environments)
    yield from _previous(facts, environments)


def _environment(facts: Facts, path: str) -> Environment:
    name = PurePath(path).stem
    release, beside = None, pins.release_path(name)
    if facts.checkout.has(beside):
        try:
            release = manifest.parse(facts.checkout.source(beside).text, beside).release
        except CiError:
            release = None  # `environments` reports it
    return Environment(name, facts.checkout.source(path), release)


def _named(facts: Facts, environments: list[Environment]) -> Iterator[Finding]:
    names = {environment.name for environment in environments}
    for path in facts.checkout.glob(f"{pins.FOLDER}/*.release.json"):
        name = PurePath(path).name.removesuffix(".release.json")
        if name not in names:
            yield Finding(
                path, 1, "environment-name", f"is a release of {name}", f"there is no {pins.toml_path(name)}"
            )
    for environment in environments:
        if (actual := environment.settings.get("name")) != environment.name:
            yield environment.finding(
                "name", "environment-name", f"name is {actual}", f"must be {environment.name}, as the file"
            )
        home, zones = environment.settings.get("home_region"), environment.settings.get("region", ())
        if home and zones and home not in {region.get("name") for region in zones}:
            yield environment.finding(
                "home_region", "environment-region", f"home_region is {home}", "must be one of its regions"
            )


def _accounts(known: Registry, environments: list[Environment]) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for environment in environments:
        account = str(environment.settings.get("account", ""))
        if account in seen:
            actual = f"account is {account}"
            yield environment.finding(
                "account", "environment-account", actual, f"{seen[account]} has it: each has its own"
            )
        seen.setdefault(account, environment.name)
        for number, line in enumerate(environment.source.lines, start=1):
            for other in re.findall(r"arn:aws[\w-]*:[\w-]+:[\w-]*:(\d*):", line):
                if other not in ("", account):
                    actual = f"names account {other}"
                    yield Finding(
                        environment.source.path,
                        number,
                        "environment-account",
                        actual,
                        f"must be {account}, its own",
                    )
        for region in re.findall(r"arn:aws[\w-]*:acm:([\w-]+):", environment.source.text):
            if region != environment.settings.get("home_region"):
                yield environment.finding(
                    "certificate_arn",
                    "environment-region",
                    f"the certificate is of {region}",
                    f"must be of home_region, {environment.settings.get('home_region')}",
                )
        stated = known.fact.get(f"account_{environment.name}")
        if stated is not None and account != stated:
            yield environment.finding(
                "account",
                "environment-account",
                f"account is {account}",
                f"must be {stated}, as in {registry.FILE}",
            )


def _tier(known: Registry, environment: Environment, order: Plan) -> Iterator[Finding]:
    if environment.local and environment.name in order.environment:
        expected = f"{plan.FILE} has {environment.name}: what takes releases is not local"
        yield environment.finding("tier", "environment-tier", "tier is local", expected)
    if environment.local and environment.name != pins.LOCAL_TIER:
        yield environment.finding(
            "tier", "environment-tier", "tier is local", f"only {pins.toml_path(pins.LOCAL_TIER)} is"
        )
    if not environment.local and environment.tier not in known.policy:
        tiers = ", ".join(known.policy)
        yield environment.finding(
            "tier", "environment-tier", f"tier is {environment.tier or 'missing'}", f"must be one of {tiers}"
        )
    wanted = _TIERS.get(environment.name)
    if wanted and environment.tier not in (wanted, pins.LOCAL_TIER):
        yield environment.finding(
            "tier", "environment-tier", f"tier is {environment.tier}", f"must be {wanted}"
        )


def _local(environment: Environment) -> Iterator[Finding]:
    """The emulator's environment takes no releases, so it names none."""
    for reference in pins.Pins(environment.source).references():
        if reference.digest and not pins.is_placeholder(reference.digest):
            yield Finding(
                environment.source.path,
                reference.line,
                "image-of-release",
                f"{reference.key} is {reference.digest[:19]}…, of no release",
                "must be a placeholder: one digit 64 times",
            )


def _pace(facts: Facts, environment: Environment, step: Step | None, policy: Policy) -> Iterator[Finding]:
    if step is None:
        return
    source = facts.checkout.source(plan.FILE)
    section = rf"^\[environment\.{re.escape(environment.name)}\]"
    rows: list[tuple[str, bool, object, str]] = [
        (
            "soak_minutes",
            step.follows is not None and step.soak_minutes < policy.soak_minutes,
            step.soak_minutes,
            f"at least {policy.soak_minutes:g}",
        ),
        (
            "watch_minutes",
            step.watch_minutes < policy.watch_minutes,
            step.watch_minutes,
            f"at least {policy.watch_minutes:g}",
        ),
        (
            "error_budget",
            step.error_budget > policy.error_budget,
            step.error_budget,
            f"at most {policy.error_budget:g}",
        ),
        ("persons", step.persons < policy.persons, step.persons, f"at least {policy.persons}"),
    ]
    waves = step.waves_of(pins.Pins(environment.source).regions)
    alone = bool(step.waves) and len(waves) > 1
    rows.append(
        (
            "waves",
            policy.canary and not alone,
            [list(wave) for wave in step.waves],
            "a first wave that is not all regions: the canary",
        )
    )
    named = [region for wave in step.waves for region in wave]
    rows.append(("waves", len(named) != len(set(named)), named, "each region once"))
    stated = ["ready_minutes", "watch_minutes", "error_budget", *(["waves"] if policy.canary else [])]
    rows += [(key, key not in step.model_fields_set, "missing", "stated") for key in stated]
    for key, broken, actual, expected in rows:
        if broken:
            line = source.line(rf"^{key}\s*=", after=section)
            tier = f"must be {expected}, for an environment of tier {environment.tier} ({registry.FILE})"
            yield Finding(plan.FILE, line, "rollout-policy", f"{environment.name}: {key} is {actual}", tier)


def _release(environment: Environment, policy: Policy) -> Iterator[Finding]:
    release, path = environment.release, pins.release_path(environment.name)
    if release is None:
        return
    if not release.base.startswith(policy.bases):
        expected = f"must begin with {' or '.join(policy.bases)} in tier {environment.tier} ({registry.FILE})"
        yield Finding(
            path, 1, "release-base", f"{environment.name}'s images stand on {release.base[:60]}", expected
        )
    if not policy.every_architecture:
        return
    for (name, architecture), example in sorted(_run_on(environment).items()):
        image = release.all_images.get(name)
        if image is not None and architecture not in image.parts:
            actual = f"{name} has no image for {architecture}"
            expected = f"{environment.name} runs it on {example}: build it for {architecture}, too"
            yield Finding(path, 1, "release-architecture", actual, expected)


def _run_on(environment: Environment) -> dict[tuple[str, str], str]:
    """The architectures that each image runs on, with an instance type of each; a pool may name a derived image."""
    found = {(CONTROL_PLANE.name, _CONTROL_PLANE_ARCHITECTURE): "Fargate"}
    for region in environment.settings.get("region", ()):
        for pool in region.get("pool", ()):
            for each in pool.get("instance_types", ()):
                found.setdefault((pool.get("image", EDGE_WORKER.name), architecture_of(each)), each)
    return found


def architecture_of(instance_type: str) -> str:
    """The architecture of an EC2 instance type, by its name."""
    return "arm64" if _GRAVITON.match(instance_type) else "amd64"


def _unlike(environments: list[Environment]) -> Iterator[Finding]:
    """One commit gives one release: two of the same revision with other digests cannot both be its build."""
    seen: dict[str, Environment] = {}
    for environment in environments:
        if environment.release is None:
            continue
        other = seen.setdefault(environment.release.revision, environment)
        if other.release is not None and other.release.digest != environment.release.digest:
            path = pins.release_path(environment.name)
            actual = f"is another release of {environment.release.revision[:12]} than {other.name}'s"
            yield Finding(
                path, 1, "release-differs", actual, "one commit has one release: promote, do not edit"
            )


def _previous(facts: Facts, environments: list[Environment]) -> Iterator[Finding]:
    """A previous worker is of an earlier release of the environment, as Git knows them."""
    for environment in environments:
        found = pins.Pins(environment.source)
        if pins.PREVIOUS not in found.images:
            continue
        digest = found.digest(pins.PREVIOUS)
        if digest == found.digest("worker"):
            yield _not_earlier(
                environment, found, "is the worker itself", "must be an earlier one; remove the line"
            )
        elif environment.release is None:
            expected = f"{environment.name} is on no release; remove the line"
            yield _not_earlier(environment, found, f"is {digest[:19]}…", expected)
        else:
            known = _earlier_workers(facts, environment.name)
            if known is not None and digest not in known:
                expected = f"must be of a release that {environment.name} was on, as `airbridge-ci promote` writes it; remove the line"
                yield _not_earlier(environment, found, f"is {digest[:19]}…, of no earlier release", expected)


def _earlier_workers(facts: Facts, name: str) -> set[str] | None:
    """Worker digests of the releases that an environment was on; None where Git's history is not here."""
    path = pins.release_path(name)
    texts = facts.checkout.history(path)
    if texts is None:
        return None
    releases = []
    for text in texts:
        with suppress(ManifestError):
            releases.append(manifest.parse(text, path).release)
    return {
        release.images[EDGE_WORKER.name].digest for release in releases if EDGE_WORKER.name in release.images
    }


def _not_earlier(environment: Environment, found: pins.Pins, actual: str, expected: str) -> Finding:
    return Finding(
        environment.source.path,
        found.line(pins.PREVIOUS),
        "previous-worker",
        f"{pins.PREVIOUS} {actual}",
        expected,
    )
