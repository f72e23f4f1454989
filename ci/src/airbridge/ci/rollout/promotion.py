"""Promotion: a release moves to the next environment unchanged, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from airbridge.ci.checkout import Checkout, Source, replace
from airbridge.ci.exceptions import PromotionRefused, ToolError
from airbridge.ci.parity import checks
from airbridge.ci.parity.finding import as_text
from airbridge.ci.release import manifest, pins, previous
from airbridge.ci.release.manifest import Manifest, Release
from airbridge.ci.release.pins import Pins


@dataclass(frozen=True)
class Change:
    """One line of what a promotion would do."""

    what: str
    before: str
    after: str


class Direction(StrEnum):
    """Direction of a release."""

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
        """Current release of the target."""
        path = pins.release_path(self.target)
        return (
            manifest.parse(self.checkout.source(path).text, path).release if self.checkout.has(path) else None
        )

    def changes(self) -> list[Change]:
        """Differences: revision, versions, base, digests, and the stacks that get other images."""
        old, new = self.before, self.manifest.release
        rows = [
            ("revision", old.revision if old else "", new.revision),
            ("base", old.base if old else "", new.base),
        ]
        before = old.versions.model_dump() if old else {}
        rows += [
            (key, str(before.get(key, "")), str(value)) for key, value in new.versions.model_dump().items()
        ]
        images = dict(old.all_images) if old else {}
        for name, image in new.all_images.items():
            rows.append((name, images[name].digest if name in images else "", image.digest))
        rows += [(name, image.digest, "") for name, image in images.items() if name not in new.all_images]
        regions = ", ".join(f"edge-{region}" for region in pins.load(self.checkout, self.target).regions)
        rows.append(("stacks", "", f"control-plane, {regions}"))
        return [Change(what, was, is_) for what, was, is_ in rows if was != is_]

    def write(self) -> list[str]:
        """Pin the release; return the files that changed. PromotionRefused, and nothing is changed, if parity objects."""
        path = pins.toml_path(self.target)
        moved = pins.load(self.checkout, self.target).moved(
            pins.WorkerImages.of(self.manifest.release),
            self.manifest.release.images[pins.KEYS["control_plane"]].digest,
        )
        wanted = {
            path: moved,
            pins.release_path(self.target): self.manifest.text(),
            previous.path(self.target): previous.text_of(Pins(Source(path, moved)), self._known()),
        }
        before = {path: self.checkout.text(path) for path in wanted}
        written = {path: text for path, text in wanted.items() if text != before[path]}
        replace(self.checkout.root, written)
        # What was synthesised before names the images of before.
        if findings := checks.check(Checkout(self.checkout.root, self.checkout.run), synthesised=False):
            replace(self.checkout.root, {path: before[path] for path in written})
            raise PromotionRefused(f"{self.target} on this release breaks parity:\n{as_text(findings)}")
        return list(written)

    def _known(self) -> list[Manifest]:
        """Return the releases that may name the target's previous images: the one that it leaves, and those before."""
        path = pins.release_path(self.target)
        leaving = [manifest.parse(self.checkout.source(path).text, path)] if self.checkout.has(path) else []
        return [*leaving, *previous.load(self.checkout, self.target)]

    def commit(self, paths: list[str]) -> str:
        """One commit of these files; returns its id. ToolError, and the files are as they were, if Git refuses it."""
        try:
            return self._commit(paths)
        except ToolError:
            self._undo(paths)
            raise

    def _undo(self, paths: list[str]) -> None:
        run, root = self.checkout.run, self.checkout.root
        run("git", "reset", "--quiet", "--", *paths, cwd=root)
        for path in paths:
            if run("git", "ls-files", "--", path, cwd=root):
                run("git", "checkout", "--quiet", "--", path, cwd=root)
            else:
                (root / path).unlink(missing_ok=True)

    def _commit(self, paths: list[str]) -> str:
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
