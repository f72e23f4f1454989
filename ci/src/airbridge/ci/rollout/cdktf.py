"""Deployment by `cdktf deploy`, one stack at a time, with the worker image of the rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from airbridge.ci.checkout import Checkout, replace
from airbridge.ci.release import pins, previous
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.release.pins import WorkerImages
from airbridge.ci.rollout.deployment import Deploy

FOLDER = "infra"


@dataclass(frozen=True)
class Cdktf:
    """Applies an environment's stacks. `command` is the program and its options before the stack's name.

    `releases` are the verified releases of the rollout: the stacks are only synthesised with digests that a signed one names.
    """

    checkout: Checkout
    environment: str
    command: tuple[str, ...] = ("npx", "--no-install", "cdktf", "deploy", "--auto-approve")
    releases: tuple[Manifest, ...] = ()

    def __call__(self, stack: str, images: WorkerImages) -> None:
        """Apply one stack; CiError (a ToolError) with cdktf's last words if it fails."""
        with self._pinned(images):
            self.checkout.run(
                "env",
                f"AIRBRIDGE_ENV={self.environment}",
                *self.command,
                stack,
                cwd=self.checkout.root / FOLDER,
            )

    @contextmanager
    def _pinned(self, images: WorkerImages) -> Iterator[None]:
        """The stacks read the environment's files: for the way back they name the old digests for as long as it takes."""
        checkout = Checkout(self.checkout.root, self.checkout.run)
        found = pins.load(checkout, self.environment)
        if found.worker_images == images:
            yield
            return
        path = pins.toml_path(self.environment)
        moved = found.moved(images)
        known = (*self.releases, *previous.load(checkout, self.environment))
        # Which release names which digest is the synthesis's to find out: it is given all of them.
        texts = {path: moved, previous.path(self.environment): previous.text(known)}
        before = {path: checkout.text(path) for path in texts}
        replace(checkout.root, texts)
        try:
            yield
        finally:
            replace(checkout.root, before)


def with_progress(deploy: Deploy, report: Callable[[str], None]) -> Deploy:
    """Deploy, and report progress."""

    def reported(stack: str, images: WorkerImages) -> None:
        report(f"{stack}: applying with {images.worker[:19]}…")
        deploy(stack, images)

    return reported
