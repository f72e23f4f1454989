from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.security.attacks.code import CODE_ATTACKS

from airbridge.core.aws.object_store import MemoryStore, StoredObject
from airbridge.core.code.snapshot import Snapshot, pack
from airbridge.core.exceptions import BundleError, PreconditionFailed, StoreError
from airbridge.executor.bundles.registry import MemoryRegistry
from airbridge.executor.bundles.store import BundleStore
from airbridge.executor.bundles.versions import CurrentVersion

NOW = datetime(2025, 8, 20, 12, tzinfo=UTC)


@dataclass
class World:
    """Three regions in memory and a clock that only sleeping moves."""

    regions: dict[str, MemoryStore] = field(
        default_factory=lambda: {name: MemoryStore(name) for name in ("home", "north", "south")}
    )
    registry: MemoryRegistry = field(default_factory=lambda: MemoryRegistry(now=lambda: NOW))
    seconds: float = 0.0
    asleep: list[float] = field(default_factory=list)
    on_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.asleep.append(seconds)
        self.seconds += seconds
        self.on_sleep()

    def store(self, bundle: str = "dags", home: str = "home") -> BundleStore:
        return BundleStore(
            bundle,
            home,
            self.regions,
            self.registry,
            sleep=self.sleep,
            monotonic=lambda: self.seconds,
            jitter=lambda _, most: most,
        )

    def keys(self, region: str) -> list[str]:
        return [info.key for info in self.regions[region].list("")]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return snapshot_of(tmp_path, "A = 1\n")


def snapshot_of(tmp_path: Path, code: str) -> Snapshot:
    (tmp_path / "dags").mkdir(exist_ok=True)
    (tmp_path / "dags" / "a.py").write_text(code)
    return pack(tmp_path / "dags")


def archive_key(snapshot: Snapshot) -> str:
    return f"bundles/dags/{snapshot.version.removeprefix('sha256:')}.tar.gz"


def test_published_in_every_region(world: World, snapshot: Snapshot) -> None:
    """A published version is in every region's bucket, and the registry names it."""
    published = world.store().publish(snapshot, "ci", world.store().pointer())
    assert published.owed_to == ()
    assert world.keys("north") == world.keys("south") == [archive_key(snapshot)]
    assert world.keys("home") == [archive_key(snapshot)]
    assert world.store().pointer().current == CurrentVersion(1, snapshot.version, None, "ci", NOW)


def test_fetch_gives_the_tree(world: World, snapshot: Snapshot, tmp_path: Path) -> None:
    """A published version can be fetched by its digest."""
    world.store().publish(snapshot, "ci", world.store().pointer())
    world.store().fetch(snapshot.version, tmp_path / "copy")
    assert (tmp_path / "copy" / "a.py").read_text() == "A = 1\n"


def test_fetch_of_what_is_not_there(world: World, tmp_path: Path) -> None:
    """A version that was never published is named in the error, and is no passing fault."""
    with pytest.raises(BundleError, match="sha256:0000") as caught:
        world.store().fetch("sha256:" + "0" * 64, tmp_path / "copy")
    assert caught.value.transient is False


def test_pointer_remembers_the_version_before(world: World, snapshot: Snapshot, tmp_path: Path) -> None:
    """The pointer names the version it replaced, so that a person can go back."""
    world.store().publish(snapshot, "ci", world.store().pointer())
    second = snapshot_of(tmp_path, "A = 2\n")
    world.store().publish(second, "ci", world.store().pointer())
    current = world.store().pointer().current
    assert current is not None
    assert (current.version, current.previous) == (second.version, snapshot.version)
    world.store().roll_to(snapshot.version, "operator", world.store().pointer())
    assert world.store().pointer().version == snapshot.version


def test_rolling_to_an_unknown_version(world: World, snapshot: Snapshot) -> None:
    """Only a version that is in the store can become current again."""
    with pytest.raises(BundleError, match="has no version"):
        world.store().roll_to(snapshot.version, "operator", world.store().pointer())


def test_of_two_publishers_one_loses(world: World, snapshot: Snapshot, tmp_path: Path) -> None:
    """A publisher whose view is stale does not overwrite what it has not seen."""
    seen = world.store().pointer()
    world.store().publish(snapshot, "first", seen)
    with pytest.raises(PreconditionFailed):
        world.store().publish(snapshot_of(tmp_path, "A = 2\n"), "second", seen)
    assert world.store().pointer().version == snapshot.version


def test_unreachable_region_gets_version_later(world: World, snapshot: Snapshot) -> None:
    """An unreachable region delays a deployment for a bounded time and gets the version once it is
    reachable again.
    """
    world.regions["south"].unreachable = True
    published = world.store().publish(snapshot, "ci", world.store().pointer(), wait_seconds=10)
    assert published.owed_to == ("south",)
    assert world.store().pointer().version == snapshot.version
    assert world.seconds <= 10
    assert world.asleep[:3] == [0.2, 0.4, 0.8]
    assert world.store().supply(snapshot.version) == ("south",)

    world.regions["south"].unreachable = False
    assert world.store().supply(snapshot.version) == ()
    assert world.keys("south") == [archive_key(snapshot)]
    assert world.keys("home") == [archive_key(snapshot)]


def test_unreachable_region_is_waited_for_once(world: World, snapshot: Snapshot, tmp_path: Path) -> None:
    """A snapshot with environments waits for a region no longer than one without."""
    packages = snapshot_of(tmp_path, "VERSION = 1\n")
    archive = tmp_path / "packages.tar.gz"
    archive.write_bytes(packages.compressed())
    world.regions["south"].unreachable = True
    environments = {packages.version: archive}
    published = world.store().publish(
        snapshot, "ci", world.store().pointer(), environments=environments, wait_seconds=10
    )
    assert published.owed_to == ("south",)
    assert world.seconds <= 10


def test_nothing_is_published_after_the_deadline(world: World, snapshot: Snapshot) -> None:
    """A region out of reach is not waited for up to the deadline; what is late nevertheless does not become current."""
    seen = world.store().pointer()
    world.regions["south"].unreachable = True
    world.store().publish(snapshot, "ci", seen, deadline=15)
    assert world.seconds <= 5
    assert world.store().pointer().version == snapshot.version

    def stall() -> None:
        world.seconds += 100

    world.on_sleep = stall
    with pytest.raises(BundleError, match="took too long and is not published") as caught:
        world.store("late").publish(snapshot, "ci", seen, deadline=world.seconds + 15)
    assert caught.value.transient
    assert world.store("late").pointer().version is None


def test_owed_versions_outlive_newer_ones(world: World, snapshot: Snapshot, tmp_path: Path) -> None:
    """A region that comes back gets the older versions as well: runs may be pinned to them."""
    world.regions["south"].unreachable = True
    world.store().publish(snapshot, "ci", world.store().pointer(), wait_seconds=0)
    second = snapshot_of(tmp_path, "A = 2\n")
    world.store().publish(second, "ci", world.store().pointer(), wait_seconds=0)
    world.regions["south"].unreachable = False
    world.store().supply(second.version)
    assert world.keys("south") == sorted([archive_key(snapshot), archive_key(second)])


class Unreadable(MemoryStore):
    """A bucket one of whose objects cannot be read."""

    unreadable = ""

    def get(self, key: str) -> StoredObject:
        if key == self.unreadable:
            raise StoreError(f"{key} cannot be read", transient=True)
        return super().get(key)


def test_debt_stays_while_no_good_copy_can_be_read(world: World, snapshot: Snapshot, tmp_path: Path) -> None:
    """A region is owed an older version until it has it, also when the only good copy cannot be read for a while."""
    home = Unreadable("home")
    home.unreadable = archive_key(snapshot)
    world.regions["home"] = home
    world.regions["south"].unreachable = True
    world.store().publish(snapshot, "ci", world.store().pointer(), wait_seconds=0)
    second = snapshot_of(tmp_path, "A = 2\n")
    world.regions["south"].unreachable = False
    world.store().publish(second, "ci", world.store().pointer())
    world.regions["north"].delete([archive_key(snapshot)])

    assert world.store().supply(second.version) == ("south",)
    home.unreadable = ""
    assert world.store().supply(second.version) == ()
    assert world.keys("south") == sorted([archive_key(snapshot), archive_key(second)])


def test_debt_of_a_lost_copy_stays(world: World, snapshot: Snapshot, tmp_path: Path) -> None:
    """A region that had a version, lost it and could not be reached when it was published again is owed it."""
    store = world.store()
    second = snapshot_of(tmp_path, "A = 2\n")
    for each in (snapshot, second):
        store.publish(each, "ci", store.pointer())
    world.regions["south"].delete([archive_key(snapshot)])
    world.regions["south"].unreachable = True
    store.publish(snapshot, "ci", store.pointer(), wait_seconds=0)
    store.publish(second, "ci", store.pointer(), wait_seconds=0)
    assert store.supply(second.version) == ("south",)
    world.regions["south"].unreachable = False
    assert store.supply(second.version) == ()
    assert world.keys("south") == sorted([archive_key(snapshot), archive_key(second)])


def test_region_back_within_the_wait(world: World, snapshot: Snapshot) -> None:
    """A region that answers within the wait is owed nothing."""

    def recover() -> None:
        world.regions["south"].unreachable = False

    world.regions["south"].unreachable = True
    world.on_sleep = recover
    assert world.store().publish(snapshot, "ci", world.store().pointer()).owed_to == ()


def test_new_region_gets_the_current_version(world: World, snapshot: Snapshot) -> None:
    """A region added to the catalogue is supplied with what is current."""
    world.store().publish(snapshot, "ci", world.store().pointer())
    world.regions["west"] = MemoryStore("west")
    world.store().supply(snapshot.version)
    assert world.keys("west") == [archive_key(snapshot)]


def test_removed_region_is_owed_nothing(world: World, snapshot: Snapshot) -> None:
    """Debts to a region that left the catalogue are forgotten."""
    world.regions["south"].unreachable = True
    world.store().publish(snapshot, "ci", world.store().pointer(), wait_seconds=0)
    del world.regions["south"]
    world.store().supply(snapshot.version)
    assert world.keys("home") == [archive_key(snapshot)]


def test_nothing_without_the_home_region(world: World, snapshot: Snapshot) -> None:
    """Without the home region nothing is published anywhere, and the error may pass."""
    seen = world.store().pointer()
    world.regions["home"].unreachable = True
    with pytest.raises(BundleError, match="cannot be published") as caught:
        world.store().publish(snapshot, "ci", seen)
    assert caught.value.transient is True
    assert world.keys("north") == []


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "x" * 101])
def test_names_that_would_break_a_key(world: World, name: str) -> None:
    """A bundle's name must fit a key."""
    with pytest.raises(BundleError, match="cannot name a bundle"):
        world.store(name)


@pytest.mark.parametrize("attack", CODE_ATTACKS, ids=lambda attack: attack.__name__)
def test_bucket_attack(tmp_path: Path, attack: Callable[[Path], None]) -> None:
    """A writer to the buckets can make no code current, get none run, and remove none for long."""
    attack(tmp_path)
