"""Reader of plain tar archives from untrusted sources: every field of a header is checked before it is used.

Python's `tarfile` follows a negative size backwards and reads the same headers for ever (CVE-2025-8194), and
interprets a dozen extensions that DAG code has no use for. This reader knows POSIX ustar, pax extended headers
(``path`` and ``size``) and GNU long names; it refuses everything else, and each step moves forward by at least one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO, Final

from airbridge.core.exceptions import BundleError

BLOCK: Final = 512
# Most that an extended header may hold: a path has at most 4 KiB.
_EXTENSION_BYTES: Final = 64 * 1024

# pax local, pax global, GNU long name and long link name: no writer puts more before one member.
_EXTENSIONS_IN_ROW: Final = 4

_PAX_LOCAL, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"x", b"g", b"L", b"K"
_EXTENSIONS: Final = frozenset({_PAX_LOCAL, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK})
_REGULAR: Final = frozenset({b"0", b"\0", b"7"})


class Kind(Enum):
    """Type of a member, as far as a snapshot distinguishes them."""

    FILE = "file"
    DIRECTORY = "directory"
    OTHER = "other"


@dataclass(frozen=True)
class Member:
    """One member of an archive; its content starts at `offset` and has `size` bytes."""

    name: str
    size: int
    mode: int
    kind: Kind
    offset: int


@dataclass(frozen=True)
class _Header:
    name: bytes
    size: int
    mode: int
    flag: bytes


def members(tar: BinaryIO) -> Iterator[Member]:
    """Yield the members of an uncompressed tar. Raises `BundleError` at the first block that is not well formed.

    The position of `tar` may be changed between two members.
    """
    end = tar.seek(0, 2)
    position = 0
    named: dict[str, bytes] = {}
    extensions = 0
    while (header := _header_at(tar, position, end)) is not None:
        content = position + BLOCK
        extension = header.flag in _EXTENSIONS
        size = header.size if extension else _size(named, header.size)
        if content + size > end:
            raise _not_a_tar(f"a member of {size} bytes runs over the end")
        position = content + _padded(size)
        if extension:
            extensions += 1
            if extensions > _EXTENSIONS_IN_ROW or size > _EXTENSION_BYTES:
                raise _not_a_tar("an extended header is too large")
            _extend(named, header.flag, _read_at(tar, content, size))
            continue
        yield _member(header, named, size, content)
        named, extensions = {}, 0


def read(tar: BinaryIO, member: Member) -> bytes:
    """Return a member's content."""
    return _read_at(tar, member.offset, member.size)


def _header_at(tar: BinaryIO, position: int, end: int) -> _Header | None:
    """Return the header at `position`; None at the end of the archive."""
    if position + BLOCK > end:
        if position == 0:
            raise _not_a_tar("it is shorter than one block")
        return None
    block = _read_at(tar, position, BLOCK)
    if not any(block):
        return None
    if _number(block[148:156]) != 256 + sum(block) - sum(block[148:156]):
        raise _not_a_tar("the checksum of a header is wrong")
    name, prefix = _text(block[0:100]), _text(block[345:500])
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return _Header(name, _number(block[124:136]), _number(block[100:108]), block[156:157])


def _member(header: _Header, named: dict[str, bytes], size: int, offset: int) -> Member:
    raw = named.get("path", header.name)
    name = raw.decode("utf-8", "surrogateescape")
    if header.flag == b"5" or (header.flag in _REGULAR and raw.endswith(b"/")):
        return Member(name.rstrip("/"), size, header.mode, Kind.DIRECTORY, offset)
    kind = Kind.FILE if header.flag in _REGULAR else Kind.OTHER
    return Member(name, size, header.mode, kind, offset)


def _extend(named: dict[str, bytes], flag: bytes, content: bytes) -> None:
    """Store the name or size that an extended header declares for the next member."""
    if flag == _GNU_NAME:
        named["path"] = content.rstrip(b"\0")
    elif flag == _PAX_LOCAL:
        named.update(_records(content))
    elif flag == _PAX_GLOBAL and _records(content).keys() & {"path", "size"}:
        raise _not_a_tar("a global header names or sizes every member")


def _records(content: bytes) -> dict[str, bytes]:
    """Return the records (``LENGTH KEY=VALUE\\n``) of a pax header."""
    found: dict[str, bytes] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        if not digits.isdigit() or len(digits) > 5:
            raise _not_a_tar("a record of an extended header has no length")
        length = int(digits)
        record, content = content[:length], content[length:]
        if length <= len(digits) + 1 or not record.endswith(b"\n"):
            raise _not_a_tar("a record of an extended header has the wrong length")
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals:
            raise _not_a_tar("a record of an extended header has no value")
        if key.startswith(b"GNU.sparse") or key == b"hdrcharset":
            raise _not_a_tar("sparse files and foreign character sets are refused")
        found[key.decode("utf-8", "replace")] = value
    return found


def _size(named: dict[str, bytes], size: int) -> int:
    """Return the size of a member: that of its extended header if there is one."""
    digits = named.get("size")
    if digits is None:
        return size
    if not digits.isdigit() or len(digits) > 12:
        raise _not_a_tar("the size of a member is not a number")
    return int(digits)


def _number(field: bytes) -> int:
    """Return a field's octal number. The binary form of GNU tar (high bit set) is for files of 8 GiB, and for CVEs."""
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if set(digits) - set(b"01234567"):
        raise _not_a_tar("a number in a header is not octal")
    return int(digits, 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read_at(tar: BinaryIO, position: int, size: int) -> bytes:
    tar.seek(position)
    found = tar.read(size)
    if len(found) != size:
        raise _not_a_tar("it ends early")
    return found


def _not_a_tar(reason: str) -> BundleError:
    return BundleError(f"the archive is not a tar: {reason}")
