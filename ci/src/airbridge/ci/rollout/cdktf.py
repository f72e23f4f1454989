"""Deployment by `cdktf deploy`, one stack at a time, with the worker image of the rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from airbridge.ci.checkout import Checkout
from airbridge.ci.release import pins
from airbridge.ci.release.pins import WorkerImages
from airbridge.ci.rollout.deployment import Deploy

FOLDER = "infra"


@dataclass(frozen=True)
class Cdktf:
    """Applies an environment's stacks. `command` is the program and its options before the stack's name."""

    checkout: Checkout
    environment: str
    command: tuple[str, ...] = ("npx", "--no-install", "cdktf", "deploy", "--auto-approve")

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
        """The stacks read the environment's file: for the way back it names the old digests for as long as it takes."""
        path = self.checkout.root / pins.toml_path(self.environment)
        before = path.read_text(encoding="utf-8")
        found = pins.load(Checkout(self.checkout.root, self.checkout.run), self.environment)
        if found.worker_images == images:
            yield
            return
        path.write_text(found.moved(images), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")


def with_progress(deploy: Deploy, report: Callable[[str], None]) -> Deploy:
    """Deploy, and report progress."""

    def reported(stack: str, images: WorkerImages) -> None:
        report(f"{stack}: applying with {images.worker[:19]}…")
        deploy(stack, images)

    return reported
