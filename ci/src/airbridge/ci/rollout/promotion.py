"""Promotion: a release moves to the next environment unchanged, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import ManifestError, PromotionRefused
from airbridge.ci.parity import checks
from airbridge.ci.parity.finding import as_text
from airbridge.ci.release import keys, manifest, pins
from airbridge.ci.release.manifest import Manifest, Release
from airbridge.ci.rollout.control_plane import ControlPlane, Worker
from airbridge.ci.rollout.plan import FILE as PLAN_FILE
from airbridge.ci.rollout.plan import Plan, parse

SILENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Change:
    """One line of what a promotion would do."""

    what: str
    before: str
    after: str


class Direction(StrEnum):
    """Which way a release moves."""

    FORWARD = "forward"
    BACK = "back"


@dataclass(frozen=True)
class Promotion:
    """A release on its way to `target`. `source` is the environment it comes from; None for a build, and for going back."""

    checkout: Checkout
    target: str
    manifest: Manifest
    source: str | None
    direction: Direction = Direction.FORWARD

    @property
    def before(self) -> Release | None:
        """What the target is on now."""
        path = pins.release_path(self.target)
        return (
            manifest.parse(self.checkout.source(path).text, path).release if self.checkout.has(path) else None
        )

    def changes(self) -> list[Change]:
        """What differs: revision, versions, base, digests, and the stacks that get other images."""
        old, new = self.before, self.manifest.release
        rows = [
            ("revision", old.revision if old else "", new.revision),
            ("base", old.base if old else "", new.base),
        ]
        before = old.versions.model_dump() if old else {}
        rows += [
            (key, str(before.get(key, "")), str(value)) for key, value in new.versions.model_dump().items()
        ]
        for name, image in new.images.items():
            rows.append((name, old.images[name].digest if old and name in old.images else "", image.digest))
        regions = ", ".join(f"edge-{region}" for region in pins.load(self.checkout, self.target).regions)
        rows.append(("stacks", "", f"control-plane, {regions}"))
        return [Change(what, was, is_) for what, was, is_ in rows if was != is_]

    def write(self) -> list[str]:
        """Pin the release: two files, which are returned. PromotionRefused, and nothing is changed, if parity objects."""
        found = pins.load(self.checkout, self.target)
        digests = {key: self.manifest.release.images[image].digest for key, image in pins.KEYS.items()}
        written = {
            pins.toml_path(self.target): found.moved(digests),
            pins.release_path(self.target): self.manifest.text(),
        }
        before = {path: self._read(path) for path in written}
        self._replace(written)
        if findings := checks.check(Checkout(self.checkout.root, self.checkout.run)):
            self._replace(before)
            raise PromotionRefused(f"{self.target} on this release breaks parity:\n{as_text(findings)}")
        return list(written)

    def _read(self, path: str) -> str | None:
        return self.checkout.source(path).text if self.checkout.has(path) else None

    def _replace(self, texts: Mapping[str, str | None]) -> None:
        for path, text in texts.items():
            target = self.checkout.root / path
            if text is None:
                target.unlink()
            else:
                target.write_text(text, encoding="utf-8")

    def commit(self, paths: list[str]) -> str:
        """One commit of these files; returns its id."""
        run, release = self.checkout.run, self.manifest.release
        subject = f"Promote {release.versions.airbridge} ({release.revision[:12]}) to {self.target}"
        back = self.direction is Direction.BACK
        origin = (
            "Back to an earlier release."
            if back
            else f"From {self.source}."
            if self.source
            else "From a build."
        )
        run("git", "add", "--", *paths, cwd=self.checkout.root)
        run(
            "git",
            "commit",
            "--quiet",
            "-m",
            subject,
            "-m",
            f"{origin} Release {release.digest}",
            "--",
            *paths,
            cwd=self.checkout.root,
        )
        return self.checkout.revision()


@dataclass(frozen=True)
class Rules:
    """Everything that may stand in the way."""

    checkout: Checkout
    now: datetime

    def plan(self) -> Plan:
        """ci/rollout.toml."""
        return parse(self.checkout.source(PLAN_FILE).text)

    def trusted(self) -> Mapping[str, Ed25519PublicKey]:
        """images/release-keys.toml."""
        return keys.parse(self.checkout.source(keys.FILE).text)

    def of_environment(self, source: str) -> Manifest:
        """The release that an environment is on."""
        path = pins.release_path(source)
        if not self.checkout.has(path):
            raise PromotionRefused(f"{source} is on no release: there is no {path}")
        return manifest.parse(self.checkout.source(path).text, path)

    def earlier(self, target: str, revision: str | None) -> Manifest:
        """The release that an environment was on before (of `revision`, where one is given), from git's history."""
        path, run = pins.release_path(target), self.checkout.run
        now = self.of_environment(target).release.digest
        for commit in run(
            "git", "log", "--format=%H", "--diff-filter=AM", "--", path, cwd=self.checkout.root
        ).split():
            found = manifest.parse(run("git", "show", f"{commit}:{path}", cwd=self.checkout.root), path)
            if found.release.digest != now and (
                revision is None or found.release.revision.startswith(revision)
            ):
                return found
        raise PromotionRefused(
            f"{target} was on no other release{f' of {revision}' if revision else ''} before"
        )

    def check(self, promotion: Promotion, health: ControlPlane | None) -> None:
        """PromotionRefused with the first rule that is broken. `health` is asked about the source environment."""
        self._order(promotion)
        self._signature(promotion)
        self._direction(promotion)
        self._parity()
        if promotion.source is not None:
            self._soaked(promotion, health)

    def _order(self, promotion: Promotion) -> None:
        step = self.plan().environment.get(promotion.target)
        if step is None:
            raise PromotionRefused(
                f"{promotion.target} is not in {PLAN_FILE}; there are: {', '.join(self.plan().order())}"
            )
        if promotion.direction is Direction.FORWARD and step.follows != promotion.source:
            came = promotion.source or "a build"
            should = step.follows or "a build"
            raise PromotionRefused(
                f"{promotion.target} takes releases from {should}, not from {came}: no environment is skipped"
            )

    def _signature(self, promotion: Promotion) -> None:
        try:
            promotion.manifest.verify(self.trusted())
        except ManifestError as error:
            raise PromotionRefused(f"the release may not move: {error}") from error
        if missing := set(pins.KEYS.values()) - set(promotion.manifest.release.images):
            raise PromotionRefused(f"the release lacks {', '.join(sorted(missing))}")
        self._same_images(promotion)

    def _same_images(self, promotion: Promotion) -> None:
        """The source must run the very digests of the manifest: nobody has edited its file."""
        if promotion.source is None:
            return
        found = pins.load(self.checkout, promotion.source)
        for key, image in pins.KEYS.items():
            released = promotion.manifest.release.images[image].digest
            if found.digest(key) != released:
                path = f"{found.source.path}:{found.line(key)}"
                raise PromotionRefused(f"{path}: {key} is not {released}, the digest of its release")

    @staticmethod
    def _direction(promotion: Promotion) -> None:
        old, new = promotion.before, promotion.manifest.release
        back = promotion.direction is Direction.BACK
        if old is None:
            return
        if old.digest == new.digest:
            raise PromotionRefused(f"{promotion.target} is on this release already")
        if new.committed_at < old.committed_at and not back:
            raise PromotionRefused(
                f"{promotion.target} is on {old.revision[:12]} of {old.committed_at:%Y-%m-%d %H:%M}, this is"
                f" {new.revision[:12]} of {new.committed_at:%Y-%m-%d %H:%M}: going back needs --rollback"
            )
        if back and new.committed_at >= old.committed_at:
            raise PromotionRefused("--rollback is for going back; this release is not older")

    def _parity(self) -> None:
        if findings := checks.check(self.checkout):
            raise PromotionRefused(f"parity finds {len(findings)} disagreements:\n{as_text(findings)}")

    def _soaked(self, promotion: Promotion, health: ControlPlane | None) -> None:
        source, step = str(promotion.source), self.plan().environment[promotion.target]
        if step.soak_minutes == 0 and health is None:
            return
        if health is None:
            raise PromotionRefused(
                f"{source} must have been healthy for {step.soak}: name its control plane with --url"
            )
        digest = promotion.manifest.release.images[pins.KEYS["worker"]].digest
        on_it = [worker for worker in health.workers() if worker.versions.image == digest]
        if not on_it:
            raise PromotionRefused(f"no worker of {source} runs {digest}")
        if sick := [worker.id for worker in on_it if self._sick(worker)]:
            raise PromotionRefused(f"{source} is not healthy on this release: {', '.join(sorted(sick))}")
        since = min(worker.enrolled_at for worker in on_it if worker.enrolled_at)
        if self.now - since < step.soak:
            waited = str(self.now - since).split(".")[0]
            raise PromotionRefused(
                f"{source} has been on this release for {waited}, {promotion.target} asks for {step.soak}"
            )
        outcomes = health.outcomes({worker.region for worker in on_it}, since)
        budget = self.plan().environment[source].error_budget
        if outcomes.share_failed > budget:
            raise PromotionRefused(
                f"{outcomes.failed} of {outcomes.finished} tasks failed in {source} since then; its budget is {budget:.0%}"
            )

    def _sick(self, worker: Worker) -> bool:
        return worker.enrolled_at is None or not (
            worker.healthy(self.now, SILENCE_SECONDS) or worker.state in ("draining", "stopping")
        )
