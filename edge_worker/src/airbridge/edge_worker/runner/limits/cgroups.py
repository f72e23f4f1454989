"""Cgroups of a worker: where this process may make leaves for tasks, and why it may not."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from airbridge.edge_worker.runner.limits.leaf import Leaf, LegacyLeaf, UnifiedLeaf, write
from airbridge.edge_worker.runner.limits.limits import Limits

# The cgroup of everything but tasks: version 2 wants processes in leaves alone.
_AGENT: Final = "agent"
_NEEDED: Final = ("memory", "pids")
_WANTED: Final = (*_NEEDED, "cpu")

# The folder of a worker's leaves, by its process id.
_FOLDER: Final = re.compile(r"airbridge-(\d+)")

# Turns of moving processes out of a cgroup: one that forks meanwhile leaves another behind.
_MOVES: Final = 50

# Extended attributes by which systemd marks a cgroup as delegated.
_MARKS: Final = ("trusted.delegate", "user.delegate")


@dataclass(frozen=True)
class NoCgroups:
    """The reason why there are no leaves."""

    reason: str


class Cgroups(ABC):
    """A place for leaves. `mounts` is every cgroup file system: none is open to tasks, who could leave their limits or freeze others."""

    #: Name of the kind, for people.
    name: str = ""

    def __init__(self, mounts: tuple[Path, ...]) -> None:
        self.mounts = mounts
        # Several workers may share a cgroup, and each removes what those that are gone have left.
        self._folder = f"airbridge-{os.getpid()}"

    @abstractmethod
    def prepare(self) -> None:
        """Make what leaves need. Raises `OSError`."""

    @abstractmethod
    def close(self) -> None:
        """Remove what `prepare` has made, as far as no process is in it."""

    @abstractmethod
    def leaf(self, name: str) -> Leaf:
        """Return a leaf that is not made yet."""

    def new_leaf(self, name: str, limits: Limits) -> Leaf:
        """Make a leaf with limits. Raises `OSError`, and leaves nothing behind."""
        leaf = self.leaf(name)
        leaf.make()
        try:
            leaf.limit(limits)
        except OSError:
            leaf.remove()
            raise
        return leaf


class UnifiedCgroups(Cgroups):
    """Leaves of cgroup v2, in the cgroup that this worker was given."""

    name = "cgroup v2"

    def __init__(self, given: Path, mounts: tuple[Path, ...]) -> None:
        super().__init__(mounts)
        self._given = given

    def prepare(self) -> None:
        """Move this worker's processes into a leaf of their own, and hand the controllers down to those of tasks."""
        agent, leaves = self._given / _AGENT, self._given / self._folder
        agent.mkdir(exist_ok=True)
        for _turn in range(_MOVES):
            pids = (self._given / "cgroup.procs").read_text().split()
            if not pids:
                break
            for pid in pids:
                with suppress(ProcessLookupError):
                    write(agent / "cgroup.procs", pid)
        _hand_down(self._given)
        for left in _left_by_others(self._given):
            for leaf in [UnifiedLeaf(entry) for entry in left.iterdir() if entry.is_dir()]:
                leaf.kill()
            _remove_empty(left)
        leaves.mkdir(exist_ok=True)
        _hand_down(leaves)

    def close(self) -> None:
        """See `Cgroups`."""
        _remove_empty(self._given / self._folder)

    def leaf(self, name: str) -> Leaf:
        """See `Cgroups`."""
        return UnifiedLeaf(self._given / self._folder / name)


class LegacyCgroups(Cgroups):
    """Leaves of cgroup v1, beneath this process's own cgroup of each controller."""

    name = "cgroup v1"

    def __init__(self, own: Mapping[str, Path], mounts: tuple[Path, ...]) -> None:
        super().__init__(mounts)
        self._own = own

    def prepare(self) -> None:
        """Make the directories of leaves, and remove those of workers that are gone."""
        for own in dict.fromkeys(self._own.values()):
            for left in _left_by_others(own):
                _remove_empty(left)
            (own / self._folder).mkdir(exist_ok=True)

    def close(self) -> None:
        """See `Cgroups`."""
        for own in self._own.values():
            _remove_empty(own / self._folder)

    def leaf(self, name: str) -> Leaf:
        """See `Cgroups`."""
        places = {controller: own / self._folder / name for controller, own in self._own.items()}
        return LegacyLeaf(places["memory"], places["pids"], places.get("cpu"), places.get("cpuacct"))


def _hand_down(directory: Path) -> None:
    there = (directory / "cgroup.controllers").read_text().split()
    for controller in _WANTED:
        if controller in there or controller in _NEEDED:
            write(directory / "cgroup.subtree_control", f"+{controller}")


def _left_by_others(directory: Path) -> list[Path]:
    """Return the folders of workers that are gone."""
    named = [(entry, _FOLDER.fullmatch(entry.name)) for entry in directory.iterdir()]
    return [entry for entry, match in named if match and not _exists(int(match[1]))]


def _exists(pid: int) -> bool:
    """Return whether there is a process; /proc with hidepid does not show one of another user's."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):  # the latter of a number that no process has
        return False
    return True


def _remove_empty(directory: Path) -> None:
    """Remove a cgroup and those beneath it, as far as there is no process in them."""
    with suppress(OSError):
        for beneath in [entry for entry in directory.iterdir() if entry.is_dir()]:
            _remove_empty(beneath)
        directory.rmdir()


# --- Finding them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mount:
    """A mount of a cgroup file system: the cgroup at its top, its directory, and its options."""

    kind: str
    root: str
    directory: Path
    options: frozenset[str] = field(default_factory=frozenset)

    def directory_of(self, cgroup: str) -> Path | None:
        """Return the directory of a cgroup; None if this mount does not reach it."""
        if self.root == "/":
            return self.directory / cgroup.lstrip("/")
        if cgroup == self.root or cgroup.startswith(f"{self.root}/"):
            return self.directory / cgroup[len(self.root) :].lstrip("/")
        return None


def find(proc: Path = Path("/proc/self")) -> Cgroups | NoCgroups:
    """Return where this process may make leaves, without changing anything, or the reason why it may not."""
    try:
        mounts = [*_mounts((proc / "mountinfo").read_text())]
        own = _own((proc / "cgroup").read_text())
    except OSError as error:
        return NoCgroups(f"{proc}: {error.strerror}")
    every = tuple(mount.directory for mount in mounts)
    for mount in [each for each in mounts if each.kind == "cgroup2"]:
        directory = mount.directory_of(own.get("", "/"))
        if directory is not None and "memory" in _controllers(directory):
            return _unified(directory, mount, every)
    legacy: dict[str, tuple[_Mount, Path]] = {
        controller: (mount, directory)
        for controller in (*_WANTED, "cpuacct")
        for mount in mounts
        if mount.kind == "cgroup" and controller in mount.options and controller in own
        if (directory := mount.directory_of(own[controller])) is not None
    }
    if not set(_NEEDED) <= legacy.keys():
        return NoCgroups("no cgroup file system with the controllers memory and pids is mounted")
    return _legacy(legacy, every)


def _unified(directory: Path, mount: _Mount, every: tuple[Path, ...]) -> Cgroups | NoCgroups:
    if directory.name == _AGENT and _why_not_given(directory.parent, mount) is None:
        directory = directory.parent
    why = _why_not_given(directory, mount)
    return UnifiedCgroups(directory, every) if why is None else NoCgroups(why)


def _why_not_given(directory: Path, mount: _Mount) -> str | None:
    """Return why a cgroup of version 2 is not this worker's to divide; None if it is."""
    missing = [controller for controller in _NEEDED if controller not in _controllers(directory)]
    if missing:
        return f"the cgroup {directory} has no controller {' and no '.join(missing)}"
    needed = (directory, directory / "cgroup.procs", directory / "cgroup.subtree_control")
    if "ro" in mount.options or not all(os.access(path, os.W_OK) for path in needed):
        return (
            f"the cgroup {directory} cannot be written to by this worker: its systemd unit needs Delegate=yes, a container "
            "a writable /sys/fs/cgroup of its own"
        )
    top_of_container = directory == mount.directory and (directory / "cgroup.type").exists()
    if top_of_container or os.geteuid() == directory.stat().st_uid != 0 or _marked(directory):
        return None
    return (
        f"the cgroup {directory} was not given to this worker and may hold processes of others: start it from a systemd unit "
        "with Delegate=yes"
    )


def _marked(directory: Path) -> bool:
    for name in _MARKS:
        with suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def _legacy(found: Mapping[str, tuple[_Mount, Path]], every: tuple[Path, ...]) -> Cgroups | NoCgroups:
    for controller in _NEEDED:
        mount, directory = found[controller]
        if "ro" in mount.options or not os.access(directory, os.W_OK):
            return NoCgroups(
                f"the {controller} cgroup {directory} (version 1) cannot be written to by this worker: only root may divide it"
            )
    usable = {controller: place for controller, (_, place) in found.items() if os.access(place, os.W_OK)}
    return LegacyCgroups(usable, every)


def _controllers(directory: Path) -> list[str]:
    with suppress(OSError):
        return (directory / "cgroup.controllers").read_text().split()
    return []


def _own(text: str) -> dict[str, str]:
    """Return this process's cgroup by controller; that of version 2 has an empty name."""
    own: dict[str, str] = {}
    for line in text.splitlines():
        _number, controllers, cgroup = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), cgroup)
    return own


def _mounts(text: str) -> Iterator[_Mount]:
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            _id, _parent, _device, root, directory, own_options, *_rest = before.split(" ")
            every = frozenset((*options.split(","), *own_options.split(",")))
            yield _Mount(kind, root, Path(directory), every)
