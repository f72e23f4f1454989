"""Pins of an environment: its images by digest in its TOML file, and the release beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from airbridge.ci.checkout import Checkout, Source
from airbridge.ci.exceptions import CiError
from airbridge.ci.images.specs import CONTROL_PLANE, EDGE_WORKER
from airbridge.ci.release.manifest import Release

FOLDER = "infra/environments"
LOCAL_TIER = "local"

# The key of an environment's [images] table, and the image of the release that stands there.
KEYS = {"control_plane": CONTROL_PLANE.name, "worker": EDGE_WORKER.name}
# The worker image before this one, which the control plane admits until the next release. Absent before the second.
PREVIOUS = "previous_worker"
# Tables of derived worker images, by name, and of those before them.
DERIVED = "derived"
PREVIOUS_DERIVED = "previous_derived"

BY_DIGEST = re.compile(r"^(?P<repository>[a-z0-9][a-z0-9._/-]*)@(?P<digest>sha256:[0-9a-f]{64})$")
_PLACEHOLDER = re.compile(r"^sha256:([0-9a-f])\1{63}$")


def toml_path(environment: str) -> str:
    """The environment's file."""
    return f"{FOLDER}/{environment}.toml"


def release_path(environment: str) -> str:
    """The release that the environment is on; there is no such file before its first."""
    return f"{FOLDER}/{environment}.release.json"


def is_placeholder(digest: str) -> bool:
    """Return whether a digest is one digit repeated: the placeholder of an environment without a release."""
    return _PLACEHOLDER.match(digest) is not None


@dataclass(frozen=True)
class WorkerImages:
    """Digests of a release's worker images: the platform's, and the derived ones by name."""

    worker: str
    derived: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, release: Release) -> WorkerImages:
        """Return those of a release."""
        derived = {name: image.digest for name, image in release.derived.items()}
        return cls(release.images[EDGE_WORKER.name].digest, derived)

    @property
    def digests(self) -> frozenset[str]:
        """Return all of them."""
        return frozenset((self.worker, *self.derived.values()))

    def of_pool(self, image: str | None) -> str:
        """Return the digest that a pool runs which names that derived image, or none. Raises CiError if there is no such image."""
        if image is not None and image not in self.derived:
            raise CiError(
                f"the release has no image {image}; it has: {', '.join(sorted(self.derived)) or 'no derived one'}"
            )
        return self.worker if image is None else self.derived[image]


@dataclass(frozen=True)
class Reference:
    """An image that an environment's file names: by which key, on which line, of which image, and how."""

    key: str
    line: int
    image: str
    text: str

    @property
    def digest(self) -> str:
        """The digest; empty if the image is not named by one."""
        found = BY_DIGEST.match(self.text)
        return found["digest"] if found else ""


@dataclass(frozen=True)
class Pins:
    """An environment's file, as far as releases are concerned."""

    source: Source

    @property
    def images(self) -> dict[str, str]:
        """Reference by key."""
        return {key: value for key, value in self._table.items() if isinstance(value, str)}

    @property
    def _table(self) -> Mapping[str, object]:
        table = self.source.toml.get("images", {})
        return {str(key): value for key, value in table.items()} if isinstance(table, dict) else {}

    def derived(self, table: str = DERIVED) -> dict[str, Reference]:
        """Return the derived worker images of a table, by name."""
        entries = self._table.get(table, {})
        named = entries.items() if isinstance(entries, dict) else ()
        return {
            str(name): Reference(
                f"{table}.{name}",
                self.source.line(rf"^\"?{re.escape(name)}\"?\s*=", after=rf"^\[images\.{table}\]"),
                str(name),
                str(text),
            )
            for name, text in named
        }

    def references(self) -> Iterator[Reference]:
        """Yield every image that the file names or must name; the text of one that it does not name is "nothing"."""
        named = dict(KEYS)
        if PREVIOUS in self.images:
            named[PREVIOUS] = KEYS["worker"]
        for key, image in named.items():
            yield Reference(key, self.line(key), image, self.images.get(key, "nothing"))
        yield from self.derived().values()
        yield from self.derived(PREVIOUS_DERIVED).values()

    @property
    def worker_images(self) -> WorkerImages:
        """The digests of the worker images that the file names; a derived image that only has a repository yet is none."""
        named = {name: found.digest for name, found in self.derived().items()}
        derived = {name: digest for name, digest in named.items() if not is_placeholder(digest)}
        return WorkerImages(self.digest("worker"), derived)

    @property
    def local(self) -> bool:
        """Return whether this is the emulator's environment, which takes no releases."""
        return self.source.toml.get("tier") == LOCAL_TIER

    @property
    def regions(self) -> tuple[str, ...]:
        """The edge regions, in the file's order."""
        return tuple(str(region["name"]) for region in self.source.toml.get("region", ()))

    def line(self, key: str) -> int:
        """The line on which an image is named."""
        return self.source.line(rf"^{re.escape(key)}\s*=", after=r"^\[images\]")

    def digest(self, key: str) -> str:
        """The digest of an image; empty if it is not named by one."""
        found = BY_DIGEST.match(self.images.get(key, ""))
        return found["digest"] if found else ""

    def digest_of(self, image: str) -> str:
        """The digest of an image by its name in a registry; empty if the file does not name it."""
        keys = {name: key for key, name in KEYS.items()}
        if image in keys:
            return self.digest(keys[image])
        return self.derived()[image].digest if image in self.derived() else ""

    def moved(self, workers: WorkerImages, control_plane: str | None = None) -> str:
        """The file's text with other digests, everything else untouched.

        The worker images that leave become the previous ones: during a rollout both are given work.
        """
        lines = list(self.source.lines)
        digests = {"worker": workers.worker} | ({"control_plane": control_plane} if control_plane else {})
        for key, digest in digests.items():
            number = self.line(key) - 1
            lines[number] = re.sub(r'"[^"]*"', f'"{KEYS[key]}@{digest}"', lines[number], count=1)
        leaving = self.worker_images
        if workers.worker != leaving.worker:
            self._replace_previous(lines, leaving.worker)
        if dict(workers.derived) != dict(leaving.derived):
            waiting = {n: found.digest for n, found in self.derived().items() if n not in leaving.derived}
            tables = {DERIVED: {**waiting, **workers.derived}, PREVIOUS_DERIVED: leaving.derived}
            lines = _with_tables(lines, tables)
        return "\n".join(lines) + "\n"

    def _replace_previous(self, lines: list[str], digest: str) -> None:
        worker = self.line("worker") - 1
        if PREVIOUS in self.images:
            previous = self.line(PREVIOUS) - 1
            del lines[previous]
            worker -= previous < worker
        if digest and not is_placeholder(digest):
            lines.insert(worker + 1, f'{PREVIOUS} = "{KEYS["worker"]}@{digest}"')


def _with_tables(lines: list[str], tables: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the lines with the tables of derived images written anew, below those of the platform's."""
    kept: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("["):
            inside = line.strip() in {f"[images.{name}]" for name in tables}
        if not inside:
            kept.append(line)
    start = kept.index("[images]") + 1
    end = next((n for n in range(start, len(kept)) if kept[n].startswith("[")), len(kept))
    while not kept[end - 1].strip():
        end -= 1
    written = [
        line
        for name, images in tables.items()
        if images
        for line in (
            "",
            f"[images.{name}]",
            *(f'{image} = "{image}@{digest}"' for image, digest in sorted(images.items())),
        )
    ]
    return kept[:end] + written + kept[end:]


def load(checkout: Checkout, environment: str) -> Pins:
    """The pins of an environment."""
    return Pins(checkout.source(toml_path(environment)))
