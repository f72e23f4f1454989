"""Placement: which region and pool a task goes to, from its queue, its hints and what is alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError, PlacementError
from airbridge.core.hints import REGION_SCHEME, Disconnect, Hints, suggestion
from airbridge.core.protocol import DisconnectPolicy, Resources
from airbridge.core.regions import DEFAULT_POOL, Region, queue_of
from airbridge.executor.placement.nearest import Load, Near, Nearest
from airbridge.executor.settings import Settings


@dataclass(frozen=True, slots=True)
class PoolRef:
    """A pool of a region."""

    region: str
    pool: str

    def __str__(self) -> str:
        return queue_of(self.region, self.pool)


@dataclass(frozen=True, slots=True)
class Decision:
    """Placement of one task: its pool, its fallbacks, and its policy for disconnection."""

    place: PoolRef
    why: str
    fallback: tuple[PoolRef, ...]
    fallback_after: float
    disconnect: DisconnectPolicy
    warm: bool
    slots: int
    resources: Resources = field(default_factory=Resources)
    limits: tuple[str, ...] = ()
    #: Where the task's triggers run, if the task chooses: ``edge`` or ``home``.
    trigger: str | None = None


class Placement:
    """Places tasks against one catalogue and one set of settings.

    `unset_queues` are the queue names that mean "none given": Airflow's own default queue. Raises
    `ConfigurationError` if the default queue cannot be served.
    """

    def __init__(
        self, catalogue: Catalogue, settings: Settings, unset_queues: Sequence[str] = ("default",)
    ) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._unset_queues = frozenset(unset_queues)
        self._has_data = any(region.data for region in catalogue.regions)
        try:
            self._default = self._place(settings.default_queue or catalogue.home_region)
        except PlacementError as error:
            raise ConfigurationError(f"[airbridge] default_queue: {error}") from error

    @property
    def default(self) -> PoolRef:
        """Default region and pool of a task without hints."""
        return self._default

    def decide(
        self,
        queue: str | None,
        executor_config: Mapping[str, Any] | None,
        load: Load,
        slots: int = 1,
        *,
        assets: Callable[[], Sequence[str]] = tuple,
    ) -> Decision:
        """Place a task of at least `slots` slots. Raises `PlacementError`, which names the fault and a valid value.

        `assets` returns the URIs of what the task reads and writes. It is called for a task with neither queue nor hint of
        data; what no region holds, or no region that has the task's pool, does not count.
        """
        hints = Hints.read(executor_config)
        place, why = self._choose(queue, hints, slots, load, assets)
        fallback = self._fallback(hints.fallback, place)
        return Decision(
            place=place,
            why=why,
            fallback=fallback,
            slots=self._slots((place, *fallback), slots, hints),
            resources=Resources(memory=hints.memory, cpus=hints.cpus),
            limits=self._limits(hints.limits),
            fallback_after=hints.fallback_after or self._settings.fallback_after,
            disconnect=self._disconnect(hints.disconnect),
            warm=self._settings.warm if hints.warm is None else hints.warm,
            trigger=hints.trigger,
        )

    def _choose(
        self, queue: str | None, hints: Hints, slots: int, load: Load, assets: Callable[[], Sequence[str]]
    ) -> tuple[PoolRef, str]:
        near = self._near(hints.near)
        if queue and queue not in self._unset_queues:
            return self._place(queue, pool=hints.pool), f"its queue is {queue!r}"
        pool = hints.pool or DEFAULT_POOL
        if near:
            nearest = Nearest(near, hints, slots, self._catalogue.prices, load)
            if all(region.pool(pool) is None for region in nearest.regions):
                return self._in_region(nearest.regions[0].name, pool, subject="the hint"), ""
            choice = nearest.choose(refuse=True)
            return PoolRef(choice.region, pool), choice.why
        if self._settings.near_assets and (held := self._held(assets, pool)):
            choice = Nearest(held, hints, slots, self._catalogue.prices, load).choose(refuse=False)
            return PoolRef(choice.region, pool), f"{choice.why}, which it declares as assets"
        if hints.pool:
            return self._in_region(self._default.region, hints.pool), f"its pool is {hints.pool!r}"
        return self._default, "it names neither a queue nor a hint"

    # --- Queues -----------------------------------------------------------------------------------

    def _place(self, queue: str, pool: str | None = None) -> PoolRef:
        """Read ``region`` or ``pool@region``."""
        named, at, region = queue.rpartition("@")
        if at and not (named and region):
            raise PlacementError(f"queue {queue!r} is malformed; it must be 'region' or 'pool@region'")
        return self._in_region(region, named or pool or DEFAULT_POOL, subject=f"queue {queue!r}")

    def _in_region(self, region: str, pool: str, subject: str | None = None) -> PoolRef:
        found = self._region(region, subject or f"region {region!r}")
        if found.pool(pool) is None:
            pools = [each.name for each in found.pools]
            where = subject or f"pool {pool!r}"
            raise PlacementError(
                f"{where} is served by nobody: region {region!r} has no pool {pool!r}"
                f"{suggestion(pool, 'its pools', pools)}"
            )
        return PoolRef(region, pool)

    def _region(self, name: str, subject: str) -> Region:
        region = self._catalogue.region(name)
        if region is None:
            names = self._catalogue.names
            raise PlacementError(
                f"{subject} is served by nobody: there is no region {name!r}{suggestion(name, 'regions', names)}"
            )
        return region

    # --- Hints ------------------------------------------------------------------------------------

    def _near(self, hints: Sequence[str]) -> list[Near]:
        return [Near(hint, self._holders(hint)) for hint in hints]

    def _held(self, assets: Callable[[], Sequence[str]], pool: str) -> list[Near]:
        """Return the assets that a region with this pool holds, with all of their regions."""
        if not self._has_data:
            return []
        found = []
        for uri in assets():
            holders = self._catalogue.regions_with(uri)
            if any(region.pool(pool) is not None for region in holders):
                found.append(Near(uri, holders))
        return found

    def _holders(self, hint: str) -> tuple[Region, ...]:
        """Return the regions a hint points to."""
        subject = f"executor_config['airbridge']['near'] hint {hint!r}"
        if hint.startswith(REGION_SCHEME):
            return (self._region(hint.removeprefix(REGION_SCHEME), subject),)
        holders = self._catalogue.regions_with(hint)
        if not holders:
            known = [uri for region in self._catalogue.regions for uri in region.data]
            raise PlacementError(
                f"{subject} is data that no region holds{suggestion(hint, 'known data', known)}. "
                "Add it to 'data' of a region in the catalogue, or name the region as region:NAME"
            )
        return holders

    def _fallback(self, queues: Sequence[str], place: PoolRef) -> tuple[PoolRef, ...]:
        found: list[PoolRef] = []
        for queue in queues:
            region = self._catalogue.region(queue)
            pool = place.pool if region is not None and region.pool(place.pool) is not None else None
            try:
                other = self._place(queue, pool=pool)
            except PlacementError as error:
                raise PlacementError(f"executor_config['airbridge']['fallback']: {error}") from error
            if other != place and other not in found:
                found.append(other)
        return tuple(found)

    def _limits(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names, sorted. Raises `PlacementError` for one that the catalogue does not have."""
        known = [limit.name for limit in self._catalogue.limits]
        for name in names:
            if name not in known:
                raise PlacementError(
                    f"executor_config['airbridge']['limits']: there is no limit {name!r}{suggestion(name, 'limits', known)}"
                )
        return tuple(sorted({*names}))

    def _slots(self, places: Sequence[PoolRef], slots: int, hints: Hints) -> int:
        """Return the slots that a task takes in whichever of the pools it comes to. Raises `PlacementError` if one cannot have it."""
        needed = slots
        for place in places:
            region = self._catalogue.region(place.region)
            pool = region.pool(place.pool) if region is not None else None
            if pool is not None:
                needed = max(needed, pool.slots_for(slots, hints.memory, hints.cpus))
        return needed

    def _disconnect(self, requested: Disconnect) -> DisconnectPolicy:
        settings = self._settings
        lost_after = requested.lost_after or settings.lost_after
        stop_after = requested.stop_after or settings.stop_after
        if requested.stop_after is not None and requested.stop_after > lost_after:
            raise PlacementError(
                f"executor_config['airbridge']['disconnect']['stop_after'] is {requested.stop_after:g}; "
                f"it must be at most lost_after ({lost_after:g})"
            )
        return DisconnectPolicy(
            lost_after=lost_after,
            stop_after=None if stop_after is None else min(stop_after, lost_after),
            replace=settings.replace if requested.replace is None else requested.replace,
        )
