"""Push environments that were built elsewhere: `EnvironmentReceiver` in the gateway, `push` in the client.

For control planes without a package index: a CI job that has one builds, under the same versions of the platform, and pushes the
archives. The offer, a manifest with all that decided it, is answered with the archives that the home region lacks; once none is lacking, the
environment is kept, and every later publishing of the bundle with the same requirement files uses it. An archive is verified and unpacked before it is stored.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from airbridge.control_plane import dags
from airbridge.core.catalogue import Catalogue
from airbridge.core.code import environment
from airbridge.core.code.environment import Build, Environment
from airbridge.core.code.snapshot import Limits, hex_of, unpack
from airbridge.core.exceptions import BundleError
from airbridge.executor.bundle_settings import PackageSettings, load_packages
from airbridge.executor.bundles.environments import inputs as recorded
from airbridge.executor.bundles.environments.inputs import Inputs
from airbridge.executor.bundles.registry import ledger_registry, record_nothing
from airbridge.executor.bundles.store import BundleStore
from airbridge.executor.settings import Settings

# What the gateway reads of one archive, compressed.
ARCHIVE_BYTES: Final = 256 * 1024 * 1024
# What is kept and read of the texts. Workers refuse a larger manifest.
_LOCK_BYTES: Final = 4 * 1024 * 1024
_INPUTS_BYTES: Final = 10 * 1024 * 1024
_UNPACKED_AT_ONCE: Final = 2
_HOW: Final = (
    "build it with 'airbridge env build' in the control plane's image, with the control plane's settings"
)


@dataclass(frozen=True)
class Offer:
    """Texts of an environment that was built: its manifest, its lock, and its inputs."""

    manifest: str
    lock: str
    inputs: str


@dataclass(frozen=True)
class Answer:
    """Archives that are still needed; none once the environment is kept for `inputs`."""

    inputs: str
    missing: tuple[str, ...]


class EnvironmentReceiver:
    """Takes environments for bundles. Thread-safe.

    `store_of` opens a bundle's store, `check_bundle` raises `BundleError` unless a bundle is AirBridge's.
    """

    def __init__(
        self,
        store_of: Callable[[str], BundleStore],
        check_bundle: Callable[[str], object],
        packages: PackageSettings,
    ) -> None:
        self._store_of = store_of
        self._check_bundle = check_bundle
        self._packages = packages
        self._unpacking = threading.BoundedSemaphore(_UNPACKED_AT_ONCE)

    def offer(
        self, bundle: str, offer: Offer, actor: str, record: Callable[[Any, str], None] | None = None
    ) -> Answer:
        """Keep an environment if the home region has its archives; return those that it lacks. Raises `BundleError`.

        `record` is called in the transaction that keeps it, with its session and the digest of the inputs.
        """
        self._check_bundle(bundle)
        _check_text(environment.MANIFEST, offer.manifest, environment.MANIFEST_BYTES)
        _check_text(environment.LOCK, offer.lock, _LOCK_BYTES)
        _check_text(recorded.FILE, offer.inputs, _INPUTS_BYTES)
        offered = Inputs.decode(offer.inputs.encode())
        found = Environment.decode(offer.manifest.encode())
        self._check(offered, found)
        store = self._store_of(bundle)
        missing = store.lacking(build.version for build in found.builds)
        if not missing:
            files = {environment.MANIFEST: found.encoded(), environment.LOCK: offer.lock.encode()}
            recorder = record_nothing if record is None else lambda session: record(session, found.inputs)
            store.keep_environment(found.inputs, files, actor, recorder)
        return Answer(found.inputs, missing)

    def take(self, bundle: str, version: str, archive: bytes) -> tuple[str, ...]:
        """Put an archive into every region; return those that have yet to get it. Raises `BundleError`."""
        self._check_bundle(bundle)
        hex_of(version)
        bounds = environment.LIMITS
        limits = Limits(bounds.files, bounds.file_bytes, min(self._max_bytes, bounds.total_bytes))
        with self._unpacking, tempfile.TemporaryDirectory(prefix="airbridge-environment-") as scratch:
            unpack([archive], version, Path(scratch, "tree"), limits)
        return self._store_of(bundle).put_environment(version, archive)

    @property
    def _max_bytes(self) -> int:
        return int(self._packages.max_mb * 1024 * 1024)

    def _check(self, offered: Inputs, found: Environment) -> None:
        """Raise `BundleError` unless the environment is one that this control plane could have built."""
        if not self._packages.enabled:
            raise BundleError("[airbridge] packages is False: bundles have no environments here")
        if offered.digest != found.inputs:
            raise BundleError(f"{environment.MANIFEST} was not built from {recorded.FILE}: build it again")
        here = Inputs.here(offered.requirement_files, self._packages)
        if differences := "; ".join(offered.differences(here)):
            raise BundleError(f"this environment is not for this control plane: {differences}: {_HOW}")
        built = {(build.python, build.machine) for build in found.builds}
        if built != {(here.python, machine) for machine in here.machines}:
            raise BundleError(f"{environment.MANIFEST} does not name one archive for each machine: {_HOW}")
        if too_large := [build for build in found.builds if build.bytes > self._max_bytes]:
            raise BundleError(
                f"the environment has {too_large[0].bytes / 1024 / 1024:.1f} MiB; [airbridge] package_max_mb allows {self._packages.max_mb:g}"
            )


def _check_text(name: str, text: str, most: int) -> None:
    """Raise `BundleError` for what the database would not take as text."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BundleError(f"{name} is not text: {error.reason}") from error
    if "\0" in text:
        raise BundleError(f"{name} is not text: it has a NUL character")
    if size > most:
        raise BundleError(f"{name} has {size} bytes; at most {most} are taken")


def receiver(settings: Settings) -> EnvironmentReceiver:
    """Return the receiver for the catalogue's regions and AirBridge's bundles of Airflow's configuration."""
    catalogue = Catalogue.read(settings.regions_file)
    registry = ledger_registry(settings.secrets_dir)
    return EnvironmentReceiver(
        lambda bundle: BundleStore.of(bundle, catalogue, registry),
        dags.check_airbridge_bundle,
        load_packages(),
    )


# --- The client's side ------------------------------------------------------------------------------


class EnvironmentClient(dags.PutsBytes, Protocol):
    """Part of `airbridge.control_plane.operator_client.OperatorClient` that pushing an environment needs."""

    def put(self, path: str, body: Any) -> Any:
        """Send a PUT; return the answer's JSON."""
        ...


@dataclass(frozen=True)
class Built:
    """Folder that ``airbridge env build --out`` has written."""

    offer: Offer
    environment: Environment
    archives: dict[str, Path]

    @classmethod
    def read(cls, folder: Path) -> Built:
        """Read a folder. Raises `BundleError`."""
        texts = []
        for name in (environment.MANIFEST, environment.LOCK, recorded.FILE):
            try:
                texts.append((folder / name).read_text())
            except (OSError, UnicodeDecodeError) as error:
                raise BundleError(
                    f"{folder} has no {name}: name a folder that 'airbridge env build --out' wrote"
                ) from error
        found = Environment.decode(texts[0].encode())
        archives = {build.version: folder / archive_name(build) for build in found.builds}
        for path in archives.values():
            if not path.is_file():
                raise BundleError(f"{path} is missing: build the environment again")
            if path.stat().st_size > ARCHIVE_BYTES:
                raise BundleError(
                    f"{path} has {path.stat().st_size / 1024 / 1024:.1f} MiB; at most {ARCHIVE_BYTES // 1024 // 1024} can be pushed"
                )
        return cls(Offer(*texts), found, archives)


def archive_name(build: Build) -> str:
    """Return the file name of a build's archive in such a folder."""
    return f"{hex_of(build.version)}.tar.gz"


class EnvironmentWatcher(Protocol):
    """Observer of an environment's push."""

    def sending(self, version: str, archive_bytes: int) -> None:
        """Note that an archive is about to be sent."""
        ...

    def sent(self, sent_bytes: int) -> None:
        """Note how much of the archive has been sent. After the last byte the gateway verifies it."""
        ...


@dataclass(frozen=True)
class PushedEnvironment:
    """Environment that is now used for a bundle, and the archives that had to be sent."""

    bundle: str
    inputs: str
    sent: tuple[str, ...]


def push(
    client: EnvironmentClient, folder: Path, bundle: str, watcher: EnvironmentWatcher
) -> PushedEnvironment:
    """Push an environment for a bundle. Raises `BundleError` for a folder that is none, and what `client` raises."""
    built = Built.read(folder)
    path = f"environments/{bundle}"
    sent = tuple(_send(client, path, built, watcher))
    answer = _offer(client, path, built)
    if answer["missing"]:
        raise BundleError("the home region lost an archive meanwhile: push again", transient=True)
    return PushedEnvironment(bundle, answer["inputs"], sent)


def _offer(client: EnvironmentClient, path: str, built: Built) -> Any:
    return client.put(path, vars(built.offer))


def _send(client: EnvironmentClient, path: str, built: Built, watcher: EnvironmentWatcher) -> Iterator[str]:
    for version in _offer(client, path, built)["missing"]:
        content = built.archives[version].read_bytes()
        watcher.sending(version, len(content))
        client.put_bytes(f"{path}/{hex_of(version)}", content, dags.CONTENT_TYPE, watcher.sent)
        yield version
