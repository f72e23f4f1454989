"""Untrusted archives pushed as DAG code. ``python -m tests.security.attacks.archives TAR FOLDER`` extracts one."""

from __future__ import annotations

import io
import resource
import sys
import tarfile
from pathlib import Path

_CPU_SECONDS = 2


def signed(header: bytes | bytearray) -> bytes:
    """Return a header block with the right checksum."""
    block = bytearray(header)
    # POSIX ustar: the sum of the header's bytes, with the checksum field itself counted as blanks.
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _header(name: str, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    # Offsets of a POSIX header: size at 124, type at 156.
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    return signed(block)


def _negative(size: int) -> bytes:
    """Return a negative number in GNU tar's binary form."""
    return b"\xff" + (256**11 + size).to_bytes(11, "big")


def _pax(name: str, **records: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.pax_headers = dict(records)
        tar.addfile(member)
    return buffer.getvalue()


# A size of -512 moves a reader back to the header that it has just read (CVE-2025-8194 in Python's tarfile).
SPINNING = {
    "negative size": _header("a", b"0") + _header("b", _negative(-512)) + b"\0" * 1024,
    "negative size of an ignored file": _header("a", b"0")
    + _header(".git/b", _negative(-512))
    + b"\0" * 1024,
    "negative size of a directory": _header("a", b"0") + _header("b", _negative(-512), b"5") + b"\0" * 1024,
    "negative size of an unknown type": _header("a", b"0")
    + _header("b", _negative(-512), b"Z")
    + b"\0" * 1024,
    "negative pax size": _header("a", b"0") + _pax("b", size="-512"),
}


def main(source: Path, folder: Path) -> None:
    """Extract an archive within two seconds of CPU; end with a status other than 0 if it neither ends nor is refused."""
    from airbridge.core.code.snapshot import extract
    from airbridge.core.exceptions import BundleError

    # The limit counts from the start of the process, and the imports above have used some of it.
    used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + _CPU_SECONDS, used + _CPU_SECONDS))
    folder.mkdir()
    try:
        extract(source.read_bytes(), folder)
    except BundleError as error:
        sys.stdout.write(f"refused: {error}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
