from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airbridge.core.code.snapshot import (
    Limits,
    Snapshot,
    decompress,
    digest_of,
    extract,
    fingerprint,
    hex_of,
    pack,
    unpack,
)
from airbridge.core.exceptions import BundleError, ParseFailure
from airbridge.core.sandbox import trees


@pytest.fixture
def dags(tmp_path: Path) -> Path:
    root = tmp_path / "dags"
    write(root, "one.py", "ONE = 1\n")
    write(root, "team/two.py", "TWO = 2\n")
    write(root, ".airflowignore", "nothing\n")
    return root


def write(root: Path, name: str, content: str = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def names(snapshot: Snapshot) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(snapshot.tar)) as tar:
        return tar.getnames()


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


# --- Packing ---


def test_equal_trees_have_equal_versions(dags: Path, tmp_path: Path) -> None:
    """Times, owners, creation order and the folder's own name do not matter; content does."""
    twin = tmp_path / "elsewhere" / "code"
    for name in ["team/two.py", ".airflowignore", "one.py"]:
        path = write(twin, name, (dags / name).read_text())
        os.utime(path, (1, 1))
    assert pack(twin).version == pack(dags).version
    write(twin, "one.py", "ONE = 11\n")
    assert pack(twin).version != pack(dags).version


def test_version_is_digest_of_tar(dags: Path) -> None:
    """A version is the SHA-256 of the uncompressed tar: gunzip and sha256sum verify it."""
    snapshot = pack(dags)
    assert snapshot.version == digest_of(gzip.decompress(snapshot.compressed()))
    assert snapshot.files == 3


def test_version_is_stable_over_releases(tmp_path: Path) -> None:
    """The digest of a known tree never changes: a new release must not republish unchanged code."""
    write(tmp_path, "a.py", "A = 1\n")
    write(tmp_path, "b/c.txt", "text")
    assert pack(tmp_path).version == "sha256:66f51a4d0d9a6e3fce03c68b7f3342c5260d434d195b553b1734fcef433fac10"


def test_rename_and_executable_bit_are_content(dags: Path) -> None:
    """A file's name and whether it can be executed are part of the version; other mode bits are not."""
    before = pack(dags).version
    (dags / "one.py").chmod(0o600)
    assert pack(dags).version == before
    (dags / "one.py").chmod(0o755)
    assert pack(dags).version != before


def test_litter_is_ignored(dags: Path) -> None:
    """Version control, byte code and editors' lock files are no code; .airflowignore is."""
    before = pack(dags).version
    write(dags, ".git/HEAD", "ref")
    write(dags, "team/__pycache__/two.cpython-311.pyc", "x")
    write(dags, "old.pyc", "x")
    (dags / ".#one.py").symlink_to("nobody@host.123")
    assert pack(dags).version == before
    assert ".airflowignore" in names(pack(dags))


def test_empty_directory_packs(tmp_path: Path) -> None:
    """A folder without files is a valid snapshot of nothing."""
    assert pack(tmp_path).files == 0


def test_inner_link_is_packed_as_target(dags: Path) -> None:
    """A symbolic link to a file of the tree becomes a copy of that file."""
    (dags / "alias.py").symlink_to("one.py")
    with tarfile.open(fileobj=io.BytesIO(pack(dags).tar)) as tar:
        member = tar.extractfile("alias.py")
        assert member is not None
        assert member.read() == b"ONE = 1\n"


def test_outward_link_is_refused(dags: Path, tmp_path: Path) -> None:
    """A link that leads out of the tree is refused by name: it could publish a secret of the machine."""
    secret = write(tmp_path, "ca.key", "secret")
    (dags / "innocent.py").symlink_to(secret)
    with pytest.raises(BundleError, match=r"innocent\.py is a symbolic link that leads out"):
        pack(dags)


def test_linked_directory_is_refused(dags: Path) -> None:
    """A link to a directory is named and refused."""
    (dags / "loop").symlink_to(dags)
    with pytest.raises(BundleError, match="loop is a symbolic link to a directory"):
        pack(dags)


def test_fifo_is_refused(dags: Path) -> None:
    """A pipe would hang the reader: it is named and refused."""
    os.mkfifo(dags / "pipe")
    with pytest.raises(BundleError, match="pipe is not a regular file"):
        pack(dags)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(files=2), "more than 2 files"),
        (Limits(file_bytes=4), "at most 4"),
        (Limits(total_bytes=10), "more than 10 bytes"),
    ],
)
def test_bounds_on_packing(dags: Path, limits: Limits, message: str) -> None:
    """A tree over a bound is refused; the message names the bound."""
    with pytest.raises(BundleError, match=message):
        pack(dags, limits)


def test_missing_folder(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    with pytest.raises(BundleError, match="no/such/folder is not a directory"):
        pack(tmp_path / "no/such/folder")


def test_fingerprint_follows_every_change(dags: Path) -> None:
    """The fingerprint changes with a file's content, name and absence, and with nothing else."""
    marks = [fingerprint(dags)]
    assert fingerprint(dags) == marks[0]
    write(dags, "one.py", "ONE = 100\n")
    marks.append(fingerprint(dags))
    (dags / "one.py").rename(dags / "uno.py")
    marks.append(fingerprint(dags))
    (dags / "uno.py").unlink()
    marks.append(fingerprint(dags))
    assert len(set(marks)) == 4


# --- Unpacking ---


def test_unpacks_what_was_packed(dags: Path, tmp_path: Path) -> None:
    """Packed and unpacked, a tree has the same files, read-only, and the same version."""
    (dags / "one.py").chmod(0o755)
    snapshot = pack(dags)
    copy = tmp_path / "cache" / hex_of(snapshot.version)
    unpack([snapshot.compressed()], snapshot.version, copy)
    assert tree(copy) == tree(dags)
    assert stat.S_IMODE((copy / "one.py").stat().st_mode) == 0o555
    assert stat.S_IMODE((copy / "team/two.py").stat().st_mode) == 0o444
    assert pack(copy).version == snapshot.version
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_unpacked_files_are_new(dags: Path, tmp_path: Path) -> None:
    """Files carry the time they were unpacked, so that the dag-processor parses a new version at once."""
    before = (dags / "one.py").stat().st_mtime
    snapshot = pack(dags)
    unpack([snapshot.compressed()], snapshot.version, tmp_path / "copy")
    assert (tmp_path / "copy" / "one.py").stat().st_mtime >= before


def test_forged_content_is_never_written(dags: Path, tmp_path: Path) -> None:
    """An archive that is not the requested version leaves nothing behind."""
    wanted = pack(dags).version
    write(dags, "one.py", "import evil\n")
    with pytest.raises(BundleError, match="damaged or forged"):
        unpack([pack(dags).compressed()], wanted, tmp_path / "cache" / "copy")
    assert list((tmp_path / "cache").iterdir()) == []


@given(position=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
@settings(max_examples=60, deadline=None)
def test_any_damaged_byte_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    """Whichever byte of the compressed archive is damaged, the tree comes out right or not at all."""
    root = tmp_path_factory.mktemp("damage")
    write(root, "dags/one.py", "ONE = 1\n")
    snapshot = pack(root / "dags")
    damaged = bytearray(snapshot.compressed())
    damaged[position % len(damaged)] ^= flip
    try:
        unpack([bytes(damaged)], snapshot.version, root / "copy")
    except BundleError:
        assert not (root / "copy").exists()
    else:  # a flag or a time of the gzip header, which is not content
        assert pack(root / "copy").version == snapshot.version


def test_truncated_archive_is_transient(dags: Path, tmp_path: Path) -> None:
    """A download that broke off may be tried again."""
    snapshot = pack(dags)
    with pytest.raises(BundleError, match="ends before its end") as caught:
        unpack([snapshot.compressed()[:-20]], snapshot.version, tmp_path / "copy")
    assert caught.value.transient is True


def test_destination_that_exists_stays(dags: Path, tmp_path: Path) -> None:
    """Unpacking beside a tree that is there already changes nothing: another process was faster."""
    snapshot = pack(dags)
    unpack([snapshot.compressed()], snapshot.version, tmp_path / "copy")
    inode = (tmp_path / "copy" / "one.py").stat().st_ino
    unpack([snapshot.compressed()], snapshot.version, tmp_path / "copy")
    assert (tmp_path / "copy" / "one.py").stat().st_ino == inode


def test_concurrent_unpacking(dags: Path, tmp_path: Path) -> None:
    """Many at once make one tree, and none of them fails."""
    snapshot = pack(dags)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            unpack([snapshot.compressed()], snapshot.version, tmp_path / "cache" / "copy")
        except BaseException as error:  # noqa: BLE001 - reported below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert tree(tmp_path / "cache") == {f"copy/{name}": content for name, content in tree(dags).items()}


@pytest.mark.parametrize("name", ["/etc/cron.d/x", "../x", "a/../../x", "a/.."])
def test_traversal_is_refused(tmp_path: Path, name: str) -> None:
    """No file is written outside the destination."""
    with pytest.raises(BundleError, match="plain relative path"):
        extract(tar_of((tarfile.TarInfo(name), b"x")), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    """Nothing but regular files is extracted."""
    member = tarfile.TarInfo("x")
    member.type = kind
    member.linkname = "/etc/passwd"
    with pytest.raises(BundleError, match="not a regular file"):
        extract(tar_of((member, b"")), tmp_path)


def test_same_name_twice_is_refused(tmp_path: Path) -> None:
    """A second file of the same name does not replace the first."""
    with pytest.raises(BundleError, match="occurs twice"):
        extract(tar_of((tarfile.TarInfo("x"), b"1"), (tarfile.TarInfo("x"), b"2")), tmp_path)


def test_file_below_a_file_is_refused(tmp_path: Path) -> None:
    """A name whose parent is a file is refused like any clash."""
    with pytest.raises(BundleError, match="occurs twice"):
        extract(tar_of((tarfile.TarInfo("x"), b"1"), (tarfile.TarInfo("x/y"), b"2")), tmp_path)


def test_extract_takes_ordinary_tars(dags: Path, tmp_path: Path) -> None:
    """The result of `tar czf - .` is accepted: leading ./, directories, owners; ignored names are left out."""
    write(dags, ".git/HEAD", "ref")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(dags, arcname=".")
    out = tmp_path / "out"
    out.mkdir()
    extract(buffer.getvalue(), out)
    assert sorted(tree(out)) == [".airflowignore", "one.py", "team/two.py"]


def test_decompression_is_bounded(tmp_path: Path) -> None:
    """A small archive that unfolds to a huge one is stopped at the bound, in bounded pieces."""
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    assert len(bomb) < 100_000
    with pytest.raises(BundleError, match="when decompressed"):
        extract(bomb, tmp_path, Limits(files=1, total_bytes=1000))
    assert max(len(piece) for piece in decompress([bomb])) <= 1024 * 1024


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(files=1), "more than 1 files"),
        (Limits(file_bytes=1), "at most 1"),
        (Limits(total_bytes=3), "3 bytes"),
    ],
)
def test_bounds_on_extracting(tmp_path: Path, limits: Limits, message: str) -> None:
    """The bounds hold for archives of others as well."""
    archive = tar_of((tarfile.TarInfo("a"), b"12"), (tarfile.TarInfo("b"), b"34"))
    with pytest.raises(BundleError, match=message):
        extract(archive, tmp_path, limits)


@pytest.mark.parametrize("junk", [b"", b"not a tar", b"\x1f\x8bnot gzip", b"x" * 5000])
def test_junk_is_refused(tmp_path: Path, junk: bytes) -> None:
    """Bytes that are no archive are refused as such."""
    with pytest.raises(BundleError, match=r"not a tar|not gzip"):
        extract(junk, tmp_path)


def test_errors_of_the_transport_pass_through(tmp_path: Path) -> None:
    """Exceptions of the download are passed on to the caller."""

    def broken() -> Iterator[bytes]:
        yield b"\x1f\x8b"
        raise TimeoutError("gone")

    with pytest.raises(TimeoutError):
        unpack(broken(), "sha256:" + "0" * 64, tmp_path / "copy")


@pytest.mark.parametrize(
    "version", ["", "sha256:", "sha256:" + "G" * 64, "md5:" + "0" * 32, "0" * 64, "sha256:../../x"]
)
def test_what_is_no_version(version: str) -> None:
    """Only sha256: and 64 hexadecimal digits name a snapshot."""
    with pytest.raises(BundleError, match="is not a bundle version"):
        hex_of(version)


# --- Depth ---


def test_deep_archive_is_refused(tmp_path: Path) -> None:
    """Directories in one another are bounded: what removes or lists the tree later must not run out of stack."""
    allowed, refused = (tar_of((tarfile.TarInfo("d/" * levels + "dag.py"), b"x")) for levels in (100, 101))
    extract(allowed, tmp_path / "allowed")
    assert (tmp_path / "allowed" / ("d/" * 100) / "dag.py").is_file()
    with pytest.raises(BundleError, match="within 101 directories: at most 100"):
        extract(refused, tmp_path / "refused")


def test_deep_folder_is_refused(dags: Path) -> None:
    """A folder's deepest directories are refused by name, however deep it is."""
    place = os.open(dags, os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    try:
        with pytest.raises(BundleError, match="directory within 100 others"):
            pack(dags)
        left_out: list[ParseFailure] = []
        assert {"one.py", "team/two.py", ".airflowignore"} == {*names(pack(dags, left_out=left_out))}
        assert ["d/" * 100 + "d"] == [each.file for each in left_out]
    finally:
        trees.remove(dags)
