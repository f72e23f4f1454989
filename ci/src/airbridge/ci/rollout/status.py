"""State of the releases: which digest is where, by region and pool, of which release, signed by whom, since when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from airbridge.ci.exceptions import ManifestError, PromotionRefused
from airbridge.ci.release import keys, pins
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.release.pins import KEYS
from airbridge.ci.rollout.control_plane import Worker
from airbridge.ci.rollout.pools import images
from airbridge.ci.rollout.rules import SILENCE_SECONDS, Rules

#: The pool's name in the row of the control plane.
CONTROL_PLANE = "(control plane)"


@dataclass(frozen=True)
class Row:
    """An image in a pool of a region. `workers` is None where nobody was asked what runs; `since` is the promotion's time there."""

    environment: str
    region: str
    pool: str
    image: str
    digest: str
    revision: str
    signed_by: str
    since: datetime | None
    workers: int | None = None
    #: "released", "replaced" (an earlier release of the environment), or "unknown" (no release that it was on).
    state: str = "released"


@dataclass(frozen=True)
class Status:
    """Reader of what the checkout has, and of what workers report."""

    rules: Rules

    def written(self, environment: str) -> Iterator[Row]:
        """Yield what the environment's file and release have. Raises PromotionRefused if it is on no release."""
        release = self.rules.of_environment(environment)
        found = pins.load(self.rules.checkout, environment)
        home = str(found.source.toml.get("home_region", ""))
        since = self._promoted(environment)
        signer = self._signer(release)
        places = [(home, CONTROL_PLANE, KEYS["control_plane"])]
        places += [
            (region, pool, image or KEYS["worker"])
            for region, pools in images(found).items()
            for pool, image in pools.items()
        ]
        for region, pool, image in places:
            yield Row(
                environment,
                region,
                pool,
                image,
                found.digest_of(image),
                release.release.revision,
                signer,
                since,
            )

    def running(self, environment: str, workers: Sequence[Worker]) -> Iterator[Row]:
        """Yield the written rows, and below each pool the images that its live workers report."""
        live = [worker for worker in workers if worker.alive(self.rules.now, SILENCE_SECONDS)]
        shown: set[tuple[str, str]] = set()
        for row in self.written(environment):
            shown.add((row.region, row.pool))
            mine = [worker for worker in live if (worker.region, worker.pool) == (row.region, row.pool)]
            on_it = [worker for worker in mine if worker.versions.image == row.digest]
            yield row if row.pool == CONTROL_PLANE else _counted(row, on_it)
            for digest in sorted({str(worker.versions.image) for worker in mine} - {row.digest}):
                yield self._other(row, digest, [w for w in mine if str(w.versions.image) == digest])
        for worker in live:
            if (worker.region, worker.pool) not in shown:
                nowhere = Row(environment, worker.region, worker.pool, KEYS["worker"], "", "", "", None)
                yield self._other(nowhere, str(worker.versions.image), [worker])

    def _other(self, row: Row, digest: str, workers: Sequence[Worker]) -> Row:
        """Return the row of an image that is not the released one of its pool."""
        release = self._release_with(row.environment, row.image, digest)
        return _counted(
            Row(
                row.environment,
                row.region,
                row.pool,
                row.image,
                digest,
                release.release.revision if release else "",
                self._signer(release) if release else "nobody",
                None,
                state="replaced" if release else "unknown",
            ),
            workers,
        )

    def _release_with(self, environment: str, image: str, digest: str) -> Manifest | None:
        """Return the last release that the environment was on with that image."""
        for release in self.rules.history(environment):
            released = release.release.all_images.get(image)
            if released is not None and released.digest == digest:
                return release
        return None

    def _signer(self, release: Manifest) -> str:
        """Return the owner of the key that signed a release."""
        try:
            kid = release.verify(self.rules.trusted())
        except ManifestError as error:
            return f"nobody: {error}"
        return self._owners()[kid]

    def _owners(self) -> Mapping[str, str]:
        return keys.owners(self.rules.checkout.source(keys.FILE).text)

    def _promoted(self, environment: str) -> datetime | None:
        """Return when the release was committed to the environment; None if it is not committed."""
        path, checkout = pins.release_path(environment), self.rules.checkout
        written = checkout.run("git", "log", "-1", "--format=%cI", "--", path, cwd=checkout.root).strip()
        changed = checkout.run("git", "status", "--porcelain", "--", path, cwd=checkout.root).strip()
        return datetime.fromisoformat(written) if written and not changed else None


def _counted(row: Row, workers: Sequence[Worker]) -> Row:
    """Return the row with its live workers, and since when the first of them is there."""
    enrolled = [worker.enrolled_at for worker in workers if worker.enrolled_at]
    return Row(
        row.environment, row.region, row.pool, row.image, row.digest, row.revision, row.signed_by,
        min(enrolled) if enrolled else row.since, len(workers), row.state,
    )  # fmt: skip


def of_all(status: Status, environments: Sequence[str]) -> list[Row]:
    """Return what is written for several environments, without those that are on no release."""
    rows: list[Row] = []
    for environment in environments:
        try:
            rows += status.written(environment)
        except PromotionRefused:
            continue
    return rows
