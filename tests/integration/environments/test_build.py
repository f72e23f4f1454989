from __future__ import annotations

import os
import socket
import stat
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.wheels import Index

from airbridge.core.code import environment
from airbridge.core.code.environment import Environment
from airbridge.core.exceptions import BundleError, EnvironmentRefused
from airbridge.executor.bundle_settings import PackageSettings
from airbridge.executor.bundles.environments.builder import (
    EnvironmentBuilder,
    EnvironmentPending,
    Order,
    Prepared,
)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index")


def prepare(tmp_path: Path, settings: PackageSettings, text: str, *, at: str = "a") -> Prepared:
    source = tmp_path / f"source-{at}"
    source.mkdir(exist_ok=True)
    (source / "requirements.txt").write_text(text)
    return EnvironmentBuilder(tmp_path / f"cache-{at}", settings, os.environ).prepare(source)


def refused(tmp_path: Path, settings: PackageSettings, text: str) -> EnvironmentRefused:
    with pytest.raises(EnvironmentRefused) as caught:
        prepare(tmp_path, settings, text)
    return caught.value


def manifest(prepared: Prepared) -> Environment:
    return Environment.decode(prepared.files[environment.MANIFEST])


def unpacked(prepared: Prepared, folder: Path) -> Path:
    ((version, archive),) = prepared.archives.items()
    environment.unpack_environment([archive.read_bytes()], version, folder)
    return folder


def test_equal_from_two_places(tmp_path: Path, index: Index) -> None:
    """Equal requirements have equal archives and manifests wherever they are built; nothing names where that was, or runs at start."""
    files = {
        "tiny_thing.pth": "import os\n",
        "tiny/data.json": "{}",
        "tiny-1.0.dist-info/entry_points.txt": "[console_scripts]\ntiny = tiny:main\n",
        "tiny-1.0.data/scripts/tool": "#!python\nprint(1)\n",
    }
    index.add("tiny", "1.0", requires=["packaging>=20"], files=files)
    first, second = (prepare(tmp_path, index.settings, "tiny\n", at=at) for at in ("a", "elsewhere"))
    assert first.files == second.files
    assert first.archives.keys() == second.archives.keys()
    assert manifest(first).packages == {"tiny": "1.0"}
    tree = unpacked(first, tmp_path / "tree")
    sources = sorted(
        path.relative_to(tree).as_posix()
        for path in tree.rglob("*")
        if path.suffix != ".pyc" and path.is_file()
    )
    info = "tiny-1.0.dist-info"
    assert sources == [
        *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")),
        "tiny/__init__.py",
        "tiny/data.json",
    ]
    assert not [
        path
        for path in tree.rglob("*")
        if path.is_file() and str(tmp_path).encode() in path.read_bytes() and path.suffix != ".pyc"
    ]
    assert list(tree.glob("tiny/__pycache__/*.pyc"))


def test_flipped_byte_is_refused(tmp_path: Path, index: Index) -> None:
    """An archive with another content than its name says is not unpacked, and both digests are named."""
    index.add("tiny", "1.0")
    ((version, archive),) = prepare(tmp_path, index.settings, "tiny\n").archives.items()
    import gzip

    content = bytearray(gzip.decompress(archive.read_bytes()))
    content[600] ^= 1
    with pytest.raises(BundleError, match=f"not {version}: it is damaged or forged"):
        environment.unpack_environment([gzip.compress(bytes(content))], version, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_wrong_hash_is_refused(tmp_path: Path, index: Index) -> None:
    """A wheel that has not the hash of the requirements is refused by its name."""
    good = index.add("tiny", "1.0")
    assert manifest(prepare(tmp_path, index.settings, f"tiny==1.0 --hash={good}\n")).packages == {
        "tiny": "1.0"
    }
    bad = f"sha256:{'0' * 64}"
    error = str(refused(tmp_path, index.settings, f"tiny==1.0 --hash={bad}\n"))
    assert "Hash mismatch for `tiny==1.0`" in error
    assert bad in error


def test_package_without_hash_is_refused(tmp_path: Path, index: Index) -> None:
    """Where some requirements have hashes, all packages must."""
    good = index.add("tiny", "1.0", requires=["other"])
    index.add("other", "1.0")
    error = str(refused(tmp_path, index.settings, f"tiny==1.0 --hash={good}\n"))
    assert "other==1.0 has no hash" in error


def test_conflict_names_both(tmp_path: Path, index: Index) -> None:
    """A requirement against the platform's version is refused with both named, its own line or a package's that needs it."""
    index.add("wants_old", "1.0", requires=["sqlalchemy<1.2"])
    direct = str(refused(tmp_path, index.settings, "# ours\nsqlalchemy>=2\n"))
    assert "requirements.txt:2: 'sqlalchemy>=2' conflicts with sqlalchemy==1.4" in direct
    indirect = str(refused(tmp_path, index.settings, "wants-old\n"))
    assert "wants-old depend on sqlalchemy<1.2" in indirect
    assert "which the platform" in indirect or "is what the platform runs Airflow with" in indirect


def test_platform_packages_need_nothing(tmp_path: Path, index: Index) -> None:
    """Requirements that the platform has already make no environment."""
    index.folder.mkdir()
    assert prepare(tmp_path, index.settings, "apache-airflow==3.0.4\nPendulum\n") == Prepared()


def test_unbuildable_is_explained(tmp_path: Path, index: Index) -> None:
    """A package that does not exist, has no wheel for the machine, or is too large is refused by its name."""
    index.add("native", "1.0", tag="cp311-cp311-win_amd64")
    index.add("big", "1.0", files={"big/data.txt": "x" * 3_000_000})
    assert "nothere" in str(refused(tmp_path, index.settings, "nothere\n"))
    assert "native" in str(refused(tmp_path, index.settings, "native\n"))
    small = replace(index.settings, max_mb=1.0)
    assert "package_max_mb allows 1" in str(refused(tmp_path, small, "big\n"))


def test_hostile_wheel_stays_inside(tmp_path: Path, index: Index) -> None:
    """A wheel's links are files in the archive, and a path that leaves the package is not written."""
    index.folder.mkdir()
    info = "hostile-1.0.dist-info"
    link = zipfile.ZipInfo("hostile.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    outside = f"../../../..{tmp_path}/outside.py"
    content = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": f"hostile.py,,\n{outside},,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
        outside: "written = True\n",
    }
    with zipfile.ZipFile(index.folder / "hostile-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(link, "/etc/passwd")
        for name, text in content.items():
            wheel.writestr(name, text)
    tree = unpacked(prepare(tmp_path, index.settings, "hostile\n"), tmp_path / "tree")
    assert (tree / "hostile.py").read_text() == "/etc/passwd"
    assert not (tree / "hostile.py").is_symlink()
    assert not (tmp_path / "outside.py").exists()
    assert not list(tree.rglob("outside.py"))


def test_source_is_not_built(tmp_path: Path, index: Index) -> None:
    """A package that has only a source distribution is refused, and its code does not run, unless the setting allows it."""
    index.folder.mkdir()
    (index.folder / "srconly-1.0.tar.gz").write_bytes(b"not even a tar")
    error = str(refused(tmp_path, index.settings, "srconly\n"))
    assert "srconly" in error
    assert "wheel" in error


def test_hanging_index_ends(tmp_path: Path) -> None:
    """An index that accepts connections and never answers is given up within the time limit."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://me:s3cret@127.0.0.1:{server.getsockname()[1]}/simple"
        began = time.monotonic()
        error = refused(tmp_path, PackageSettings(index=url, seconds=4.0), "tiny\n")
    assert time.monotonic() - began < 60
    assert error.transient
    assert "longer than 4 s" in str(error)
    assert "s3cret" not in str(error)


@pytest.fixture
def building(tmp_path: Path) -> Iterator[tuple[EnvironmentBuilder, Path]]:
    """A builder whose build goes on, and its source."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "requirements.txt").write_text("tiny\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = PackageSettings(index=f"http://127.0.0.1:{server.getsockname()[1]}/simple", seconds=60.0)
        builder = EnvironmentBuilder(tmp_path / "cache", settings, os.environ)
        with pytest.raises(EnvironmentPending):
            builder.prepare(source, patience=0.1)
        assert list((tmp_path / "cache").glob(".build-*"))
        yield builder, source
        builder.close()


def test_build_ends_when_another_has_published(
    building: tuple[EnvironmentBuilder, Path], tmp_path: Path
) -> None:
    """A build that goes on is ended, and leaves nothing, when the current version has the environment by then."""
    builder, source = building
    order = builder.find(source, lambda: None, lambda _: None)
    assert isinstance(order, Order)
    current = tmp_path / "current"
    (current / environment.MANIFEST).parent.mkdir(parents=True)
    (current / environment.MANIFEST).write_bytes(Environment(order.inputs.digest, (), {}).encoded())
    (current / environment.LOCK).write_text("tiny==1.0\n")
    assert builder.prepare(source, lambda: current).files
    assert not list((tmp_path / "cache").glob(".build-*"))


def test_build_ends_with_refused_files(building: tuple[EnvironmentBuilder, Path], tmp_path: Path) -> None:
    """A build that goes on is ended when the files no longer name packages that can be installed."""
    builder, source = building
    (source / "pyproject.toml").write_text("")
    (source / "uv.lock").write_text("")
    with pytest.raises(EnvironmentRefused):
        builder.prepare(source, patience=0.1)
    assert not list((tmp_path / "cache").glob(".build-*"))


def test_kept_without_index(tmp_path: Path, index: Index) -> None:
    """With the index away, what this machine has built is used again, and so is what the current version has."""
    index.add("tiny", "1.0")
    first = prepare(tmp_path, index.settings, "tiny\n")
    (index.folder / "tiny-1.0-py3-none-any.whl").unlink()
    assert prepare(tmp_path, index.settings, "tiny\n") == first
    current = tmp_path / "current"
    for name, content in first.files.items():
        (current / name).parent.mkdir(parents=True, exist_ok=True)
        (current / name).write_bytes(content)
    builder = EnvironmentBuilder(tmp_path / "cache-new", index.settings, os.environ)
    taken_over = builder.prepare(tmp_path / "source-a", lambda: current)
    assert taken_over.files == first.files
    assert not taken_over.archives


def test_project_lock_is_used(tmp_path: Path, index: Index) -> None:
    """A pyproject.toml with a uv.lock has the lock's versions, with its hashes."""
    import subprocess

    from airbridge.executor.bundles.environments import uv

    index.add("tiny", "1.0")
    source = tmp_path / "project"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[project]\nname = "dags"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = ["tiny"]\n'
    )
    subprocess.run(
        [uv.find(), "lock", "--no-config", "--no-index", "--find-links", str(index.folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    index.add("tiny", "2.0")
    built = EnvironmentBuilder(tmp_path / "cache", index.settings, os.environ).prepare(source)
    assert manifest(built).packages == {"tiny": "1.0"}
