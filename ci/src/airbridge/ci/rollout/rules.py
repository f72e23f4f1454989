"""Rules of a promotion and of a deployment: each refusal names the rule that stands in the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import ManifestError, PromotionRefused, ToolError
from airbridge.ci.parity import checks
from airbridge.ci.parity.finding import as_text
from airbridge.ci.release import keys, manifest, pins, previous
from airbridge.ci.release.manifest import Manifest, Release
from airbridge.ci.release.pins import WorkerImages
from airbridge.ci.rollout.control_plane import ControlPlane, Worker
from airbridge.ci.rollout.plan import FILE as PLAN_FILE
from airbridge.ci.rollout.plan import Plan, parse
from airbridge.ci.rollout.promotion import Direction, Promotion

SILENCE_SECONDS = 120.0


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

    def earlier(self, target: str, revision: str | None, *, older: bool = False) -> Manifest:
        """The release that an environment was on before (of `revision`, where one is given), from git's history.

        `older`: the last one that is older than today's, so that going back twice goes back two releases.
        """
        now = self.of_environment(target).release
        for found in self.history(target):
            release = found.release
            if (
                release.digest != now.digest
                and (revision is None or release.revision.startswith(revision))
                and not (older and revision is None and release.committed_at >= now.committed_at)
            ):
                return found
        raise PromotionRefused(
            f"{target} was on no {'older' if older and revision is None else 'other'} release"
            f"{f' of {revision}' if revision else ''} before"
        )

    def history(self, target: str) -> Iterator[Manifest]:
        """Yield the manifests that an environment's file had in Git, the last one first."""
        path, run, root = pins.release_path(target), self.checkout.run, self.checkout.root
        commits = run("git", "log", "--format=%H", "--diff-filter=AM", "--", path, cwd=root).split()
        for commit in commits:
            yield manifest.parse(run("git", "show", f"{commit}:{path}", cwd=root), path)

    def check_deployment(self, environment: str) -> Manifest:
        """Return the release that may be deployed; PromotionRefused or ManifestError with what is in the way.

        Every digest that is applied stands in a signed manifest, and what is applied is what was committed.
        """
        release = self.of_environment(environment)
        release.verify(self.trusted())
        self._known(release.release)
        self._on_release(environment, release.release)
        self._previous(environment)
        self._committed()
        return release

    def _known(self, release: Release) -> None:
        """Require that the release was built from a commit of this branch."""
        try:
            self.checkout.run(
                "git", "merge-base", "--is-ancestor", release.revision, "HEAD", cwd=self.checkout.root
            )
        except ToolError as error:
            raise PromotionRefused(
                f"the release is of commit {release.revision[:12]}, which is not in this branch: a release is built from a "
                "commit of main"
            ) from error

    def _previous(self, environment: str) -> None:
        """Require that the second worker images that are admitted are of an earlier release of the environment."""
        found = pins.load(self.checkout, environment)
        for reference in previous.references(found):
            earlier = self._earlier_with(environment, reference)
            if earlier is None:
                raise PromotionRefused(
                    f"{found.source.path}:{reference.line}: {reference.key} is {reference.text}, of no release "
                    f"that {environment} was on: remove the line"
                )
            earlier.verify(self.trusted())
        for reference, problem in previous.problems(self.checkout, environment, self.trusted()):
            raise PromotionRefused(f"{found.source.path}:{reference.line}: {reference.key}: {problem}")

    def before(self, environment: str) -> Manifest | None:
        """Return the release that a failed wave goes back to; None before the second. ManifestError if it is not signed."""
        try:
            found = self.earlier(environment, None)
        except PromotionRefused:
            return None
        found.verify(self.trusted())
        return found

    def _earlier_with(self, environment: str, reference: pins.Reference) -> Manifest | None:
        """Return the last release that an environment was on with that image."""
        for earlier in self.history(environment):
            image = earlier.release.all_images.get(reference.image)
            if image is not None and image.digest == reference.digest:
                return earlier
        return None

    def _committed(self) -> None:
        """Require a work tree as it was committed: what is applied can be read in Git."""
        status = self.checkout.run(
            "git", "status", "--porcelain", "--untracked-files=all", cwd=self.checkout.root
        )
        changed = [
            line[3:] for line in status.splitlines() if line[:2] != "??" or line[3:].startswith("infra/")
        ]
        if changed:
            raise PromotionRefused(
                f"the work tree is not as it was committed: {', '.join(changed[:5])}; commit or undo the changes"
            )

    def check(self, promotion: Promotion, health: ControlPlane | None) -> None:
        """Raise PromotionRefused with the first broken rule. `health` returns the state of the source environment."""
        self._order(promotion)
        self._signature(promotion)
        self._known(promotion.manifest.release)
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
        """The source must run the very digests of the manifest: its file was not edited."""
        if promotion.source is not None:
            self._on_release(promotion.source, promotion.manifest.release)

    def _on_release(self, environment: str, release: Release) -> None:
        found = pins.load(self.checkout, environment)
        for key, image in pins.KEYS.items():
            released = release.images[image].digest
            if found.digest(key) != released:
                path = f"{found.source.path}:{found.line(key)}"
                raise PromotionRefused(f"{path}: {key} is not {released}, the digest of its release")
        released_derived = WorkerImages.of(release).derived
        if dict(found.worker_images.derived) != dict(released_derived):
            wanted = ", ".join(f"{name}@{digest}" for name, digest in sorted(released_derived.items()))
            raise PromotionRefused(
                f"{found.source.path}: [images.{pins.DERIVED}] is not what its release has: {wanted or 'no derived image'}"
            )

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
        if findings := checks.check(self.checkout, synthesised=False):
            raise PromotionRefused(f"parity finds {len(findings)} disagreements:\n{as_text(findings)}")

    def _soaked(self, promotion: Promotion, health: ControlPlane | None) -> None:
        source, step = str(promotion.source), self.plan().environment[promotion.target]
        if step.soak_minutes == 0 and health is None:
            return
        if health is None:
            raise PromotionRefused(
                f"{source} must have been healthy for {step.soak}: name its control plane with --url"
            )
        images = WorkerImages.of(promotion.manifest.release)
        on_it = [worker for worker in health.workers() if worker.versions.image in images.digests]
        if not on_it:
            raise PromotionRefused(f"no worker of {source} runs {images.worker}")
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
