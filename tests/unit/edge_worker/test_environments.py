"""Environments in the worker's cache of code."""

from __future__ import annotations

import asyncio
import gzip
import os
import stat
from pathlib import Path

import pytest

from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.backoff import Backoff
from airbridge.core.code import environment
from airbridge.core.code.environment import Build, Environment
from airbridge.core.code.snapshot import Snapshot, hex_of, pack
from airbridge.core.protocol import BundleRef
from airbridge.edge_worker.exceptions import SnapshotError
from airbridge.edge_worker.storage.bundles import Bundles


class Cache:
    """A worker's cache over a bucket in memory, with one environment of one module."""

    def __init__(self, folder: Path, max_bytes: int = 10**9) -> None:
        self.store = MemoryStore("code")
        self.bundles = Bundles(
            folder / "cache",
            lambda: self.store,
            lambda _ref, _signature: None,
            max_bytes=max_bytes,
            backoff=lambda: Backoff(0.001, 0.001, lambda: 0.5),
        )
        (folder / "packages" / "tiny").mkdir(parents=True)
        (folder / "packages" / "tiny" / "__init__.py").write_text("VERSION = 1\n")
        self.packages = pack(folder / "packages")
        self.put(self.packages, self.packages.compressed())
        (folder / "code").mkdir()
        (folder / "code" / "dag.py").write_text("import tiny\n")
        self.folder = folder / "code"

    def put(self, packed: Snapshot, archive: bytes) -> None:
        self.store.put(f"bundles/dags/{hex_of(packed.version)}.tar.gz", archive)

    def publish(self, machine: str | None = None, python: str | None = None) -> BundleRef:
        """Publish the code with a manifest that names the environment; return its version."""
        own, here = environment.this_platform()
        build = Build(python or own, machine or here, self.packages.version, 12)
        manifest = Environment("inputs", (build,), {"tiny": "1"}).encoded()
        packed = pack(self.folder, added={environment.MANIFEST: manifest})
        self.put(packed, packed.compressed())
        return BundleRef(name="dags", version=packed.version)

    async def use(self, ref: BundleRef) -> tuple[Path, Path | None]:
        """Return code and environment as a task gets them."""
        async with (
            self.bundles.pinned(ref, None) as code,
            self.bundles.environment(ref.name, code) as packages,
        ):
            if packages is not None:
                assert packages.is_dir()
            return code, packages


def test_environment_is_fetched_and_compiled(tmp_path: Path) -> None:
    """The packages that a snapshot names lie beside it, unpacked once, read-only and compiled."""
    cache = Cache(tmp_path)
    ref = cache.publish()
    code, packages = asyncio.run(cache.use(ref))
    assert packages is not None
    assert packages.parent == code.parent
    module = packages / "tiny" / "__init__.py"
    assert module.read_text() == "VERSION = 1\n"
    assert not module.stat().st_mode & 0o222
    assert list(packages.glob("tiny/__pycache__/__init__.*.pyc"))
    cache.store.delete([each.key for each in cache.store.list("")])
    assert asyncio.run(cache.use(ref)) == (code, packages)


def test_code_is_open_under_strict_umask(tmp_path: Path) -> None:
    """Code and packages can be read by tasks of another user, and executed where they can be at all, whatever the worker's umask is."""
    cache = Cache(tmp_path)
    script = cache.folder / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    ref = cache.publish()
    before = os.umask(0o077)
    try:
        code, packages = asyncio.run(cache.use(ref))
    finally:
        os.umask(before)
    assert packages is not None
    for path in (code.parent, code, packages, *code.rglob("*"), *packages.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o055 == (0o055 if path.is_dir() or path.name == "run.sh" else 0o044), path


def test_code_without_environment(tmp_path: Path) -> None:
    """Code that names no packages has none."""
    cache = Cache(tmp_path)
    packed = pack(cache.folder)
    cache.put(packed, packed.compressed())
    _code, packages = asyncio.run(cache.use(BundleRef(name="dags", version=packed.version)))
    assert packages is None


def test_altered_environment_is_refused(tmp_path: Path) -> None:
    """An archive with one flipped byte is refused by name, and nothing of it is kept."""
    cache = Cache(tmp_path)
    ref = cache.publish()
    content = bytearray(cache.packages.tar)
    content[600] ^= 1
    cache.put(cache.packages, gzip.compress(bytes(content)))
    with pytest.raises(SnapshotError, match=f"not {cache.packages.version}: it is damaged or forged"):
        asyncio.run(cache.use(ref))
    assert not (tmp_path / "cache" / "dags" / hex_of(cache.packages.version)).exists()


def test_other_machine_is_refused(tmp_path: Path) -> None:
    """An environment that was not built for this machine fails the task with what it was built for, and the setting."""
    cache = Cache(tmp_path)
    with pytest.raises(
        SnapshotError,
        match=r"for Python 3\.\d+ on riscv64: name the machine in \[airbridge\] package_machines",
    ):
        asyncio.run(cache.use(cache.publish(machine="riscv64")))


def test_other_python_is_refused(tmp_path: Path) -> None:
    """An environment for another Python fails the task with the one that the worker has to run, not with a setting that cannot help."""
    cache = Cache(tmp_path)
    with pytest.raises(
        SnapshotError,
        match=r"but for Python 3\.99 on \w+: packages are built for the control plane's Python alone: run the worker under Python 3\.99$",
    ):
        asyncio.run(cache.use(cache.publish(python="3.99")))


def test_environment_goes_with_disuse(tmp_path: Path) -> None:
    """An environment that is in use stays whatever the bound; afterwards it goes as snapshots do."""
    cache = Cache(tmp_path, max_bytes=1)
    _code, packages = asyncio.run(cache.use(cache.publish()))
    assert packages is not None
    assert not packages.exists()
    assert cache.bundles.bytes == 0


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"v": 2}', b'{"v": 1, "inputs": "", "builds": [{}], "packages": {}}']
)
def test_malformed_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    """What is not a manifest is refused, not taken for none."""
    cache = Cache(tmp_path)
    packed = pack(cache.folder, added={environment.MANIFEST: text})
    cache.put(packed, packed.compressed())
    with pytest.raises(SnapshotError, match=r"manifest"):
        asyncio.run(cache.use(BundleRef(name="dags", version=packed.version)))
