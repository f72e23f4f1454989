"""Untrusted archives: no header makes the reader loop, and archives of ordinary tools are read."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.security.attacks import archives

from airbridge.core.code import tar_reader
from airbridge.core.code.snapshot import extract, pack, unpack
from airbridge.core.exceptions import BundleError

FIELDS = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "checksum": (148, 8), "type": (156, 1),
          "magic": (257, 8), "prefix": (345, 155)}  # fmt: skip
VALUES = (b"\xff" * 12, b"\x80" + b"\0" * 11, b"\xff" + b"\0" * 10 + b"\1", b"-1", b"77777777777", b"", b" " * 12,
          b"0x10", b"\0" * 12, b"9" * 12, "٣".encode(), b"1e3", b"x", b"g", b"L", b"K", b"S", b"V", b"1")  # fmt: skip


def one_file(**kwargs: str) -> bytes:
    """Return a tar of one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("dag.py")
        member.size = 5
        member.pax_headers = dict(kwargs)
        tar.addfile(member, io.BytesIO(b"hello"))
    return buffer.getvalue()


def survives(archive: bytes, folder: Path) -> None:
    """Extract, or refuse with a reason: in a process that may use two seconds of CPU."""
    source = folder / "archive.tar"
    source.write_bytes(archive)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.security.attacks.archives", str(source), str(folder / "out")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-500:]


@pytest.mark.parametrize("name", archives.SPINNING)
def test_spinning_archive_is_refused(tmp_path: Path, name: str) -> None:
    """CVE-2025-8194 and variants: a size that leads back to a header that was already read is refused."""
    survives(archives.SPINNING[name], tmp_path)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("signed", [True, False], ids=["right checksum", "stale checksum"])
def test_hostile_header_field(tmp_path: Path, field: str, value: bytes, signed: bool) -> None:
    """Every field of a header with every hostile value: read or refused."""
    start, length = FIELDS[field]
    header = bytearray(one_file()[:512])
    header[start : start + length] = value[:length].ljust(length, b"\0")
    content = archives.signed(header) if signed else bytes(header)
    try:
        extract(content + b"hello".ljust(512, b"\0") + b"\0" * 1024, tmp_path)
    except BundleError:
        return
    assert all(path.is_relative_to(tmp_path) for path in tmp_path.rglob("*"))


def test_random_headers(tmp_path: Path) -> None:
    """Random bytes in headers with right checksums, five thousand times: each step moves forward."""
    random.seed(8194)
    whole = one_file(comment="x" * 300)
    for _ in range(5000):
        archive = bytearray(whole)
        for _ in range(random.randint(1, 8)):
            archive[random.randrange(len(archive) - 1024)] = random.randrange(256)
        for block in range(0, len(archive) - 1024, 512):
            if random.random() < 0.8:
                archive[block : block + 512] = archives.signed(archive[block : block + 512])
        offsets = [0]
        try:
            for member in tar_reader.members(io.BytesIO(bytes(archive))):
                assert member.size >= 0
                assert member.offset >= offsets[-1] + 512
                offsets.append(member.offset)
        except BundleError:
            continue
        assert len(offsets) <= len(archive) // 512


@pytest.mark.parametrize("size", ["-512", "1e3", "9" * 13, "٣", ""])
def test_hostile_pax_size(tmp_path: Path, size: str) -> None:
    """The size in an extended header counts, and is checked as well."""
    with pytest.raises(BundleError, match="not a tar"):
        extract(one_file(size=size), tmp_path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_common_formats(tmp_path: Path, form: int) -> None:
    """ustar, GNU and pax archives with short and long names are read alike."""
    names = ["dag.py", "sub/ünï.py", "d" * 90 + "/" + "f" * 60 + ".py"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name.encode())
            tar.addfile(member, io.BytesIO(name.encode()))
    extract(buffer.getvalue(), tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(
        names
    )
    assert all((tmp_path / name).read_text() == name for name in names)


def test_tar_of_the_system(tmp_path: Path) -> None:
    """A tree packed by ``tar`` or by Python's own writer is read back unchanged."""
    source, packed, copied = (tmp_path / name for name in ("source", "packed", "copied"))
    (source / "sub").mkdir(parents=True)
    for name in ("a.py", "sub/b.py", "sub/" + "c" * 120 + ".py"):
        (source / name).write_text(name)
    by_tar = subprocess.run(["tar", "cf", "-", "-C", source, "."], capture_output=True, check=True).stdout
    copied.mkdir()
    extract(by_tar, copied)
    snapshot = pack(source)
    unpack([snapshot.compressed()], snapshot.version, packed)
    assert pack(copied).version == pack(packed).version == snapshot.version


def test_binary_sizes_are_refused(tmp_path: Path) -> None:
    """GNU's binary numbers can be negative; DAG code has no file of 8 GiB."""
    header = bytearray(one_file()[:512])
    header[124:136] = b"\x80\0\0\0" + struct.pack(">Q", 5)
    with pytest.raises(BundleError, match="not octal"):
        extract(archives.signed(header) + b"hello".ljust(512, b"\0") + b"\0" * 1024, tmp_path)
