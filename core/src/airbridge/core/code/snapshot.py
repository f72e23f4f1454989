"""Snapshots: DAG code as one archive, named by the digest of its content.

A snapshot is a deterministic, uncompressed tar of a directory's regular files: sorted by path, owner, times and
modes normalised (0644, or 0755 if executable). Its version is ``sha256:<hex>`` of those bytes, so equal trees
have equal versions wherever they are packed. Stores hold it gzip-compressed, which does not change the version.

Packing skips `folder.IGNORED` names (version control, byte code, editors' lock files). An ``.airflowignore`` is part
of the code and is packed like any file. Symbolic links to files inside the tree are packed as what they point to.
`folder` decides what cannot be in a snapshot: links that lead out of the tree, links to directories, fifos, devices,
large files, names that are not UTF-8. `pack` refuses the tree for them, or leaves them out and returns them.

Unpacking trusts nothing: sizes and counts are bounded while decompressing, the digest is verified before the first
file is written, and only regular files under plain relative paths are. Free of Airflow, so that the edge worker may use it.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from airbridge.core.code import folder, tar_reader
from airbridge.core.code.tar_reader import Kind, Member
from airbridge.core.exceptions import BundleError, ParseFailure

PACK_ATTEMPTS = 3
_COPY_BYTES = 1024 * 1024
# Members of an archive, for each file that a snapshot may have: directories and ignored files are members
# too.
_MEMBERS_PER_FILE = 4

# Refused files that one error names.
_LISTED = 20

# Directory in a snapshot's root for files that publishing adds; a source's own are left out.
RESERVED = ".airbridge"

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Limits:
    """Bounds of a snapshot: DAG code is small; data belongs into a bucket."""

    files: int = 20_000
    file_bytes: int = 32 * 1024 * 1024
    total_bytes: int = 128 * 1024 * 1024

    @property
    def tar_bytes(self) -> int:
        """The largest tar that files within the bounds can make: content, padding, headers (plain and extended)."""
        return self.total_bytes + self.files * 4096 + tarfile.RECORDSIZE


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Snapshot:
    """A packed tree: its version, the uncompressed tar, and how many files it holds."""

    version: str
    tar: bytes
    files: int

    def compressed(self) -> bytes:
        """Return the tar gzip-compressed, as stores hold it."""
        # Without a time in the header, so that equal trees are equal objects in every store.
        return gzip.compress(self.tar, compresslevel=6, mtime=0)


def digest_of(tar: bytes) -> str:
    """Return the version of the snapshot with this uncompressed tar."""
    return f"sha256:{hashlib.sha256(tar).hexdigest()}"


def hex_of(version: str) -> str:
    """Return the hexadecimal part of a version; raises `BundleError` for anything that is not one."""
    algorithm, _, digits = version.partition(":")
    if algorithm != "sha256" or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise BundleError(f"{version!r} is not a bundle version: expected sha256: and 64 hexadecimal digits")
    return digits


def is_version(text: str) -> bool:
    """Return whether a text is a version of a snapshot."""
    try:
        return bool(hex_of(text))
    except BundleError:
        return False


# --- Packing ----------------------------------------------------------------------------------------


def pack(
    root: Path,
    limits: Limits = DEFAULT_LIMITS,
    *,
    left_out: list[ParseFailure] | None = None,
    added: Mapping[str, bytes] | None = None,
) -> Snapshot:
    """Pack the tree under `root`. A tree that changes meanwhile is packed again, so that no half-saved state is.

    `added` replaces what the tree has in `RESERVED`; without it the tree is packed as it is.
    Files that cannot be in a snapshot are left out and appended to `left_out`; without such a list they are errors.
    Raises `BundleError` for a missing root, a refused file, a bound that is exceeded, or a tree that keeps changing.
    """
    root = root.resolve()
    if not root.is_dir():
        raise BundleError(f"the DAG folder {root} is not a directory")
    for _ in range(PACK_ATTEMPTS):
        before = fingerprint(root)
        try:
            snapshot, refused = _pack_once(root, limits, added)
        except FileNotFoundError:
            continue
        if fingerprint(root) == before:
            if refused and left_out is None:
                raise _cannot_be_packed(root, refused)
            if left_out is not None:
                left_out.extend(refused)
            return snapshot
    raise BundleError(f"the DAG folder {root} changed each time it was read", transient=True)


def fingerprint(root: Path) -> str:
    """A cheap mark of the tree's state (names, sizes, times, inodes): while it stays equal, so does the version."""
    state = hashlib.sha256()
    for mark in folder.marks(root):
        state.update(mark)
    return state.hexdigest()


def _pack_once(
    root: Path, limits: Limits, added: Mapping[str, bytes] | None
) -> tuple[Snapshot, list[ParseFailure]]:
    buffer = io.BytesIO()
    total = count = 0
    contents = folder.survey(root)
    refused = list(contents.refused)
    files: dict[str, Path | bytes] = dict(contents.files)
    if added is not None:
        files = {name: path for name, path in files.items() if PurePosixPath(name).parts[0] != RESERVED}
        files.update(added)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in sorted(files.items()):
            content = (
                (path, False) if isinstance(path, bytes) else folder.read(root, name, path, limits.file_bytes)
            )
            if isinstance(content, ParseFailure):
                refused.append(content)
                continue
            data, executable = content
            count += 1
            total += len(data)
            _check_bounds(count, total, limits)
            tar.addfile(_header(name, len(data), executable), io.BytesIO(data))
    packed = buffer.getvalue()
    return Snapshot(digest_of(packed), packed, count), refused


def _cannot_be_packed(root: Path, refused: Sequence[ParseFailure]) -> BundleError:
    listed = [f"  {each.file} {each.error}" for each in refused[:_LISTED]]
    more = f"\n  and {len(refused) - _LISTED} more" if len(refused) > _LISTED else ""
    return BundleError(f"the DAG folder {root} has what no snapshot can hold:\n" + "\n".join(listed) + more)


def _header(name: str, size: int, executable: bool) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o755 if executable else 0o644
    return header  # owner, group and time are zero and empty in a new TarInfo


def _check_bounds(count: int, total: int, limits: Limits) -> None:
    if count > limits.files:
        raise BundleError(f"the snapshot has more than {limits.files} files: data belongs into a bucket")
    if total > limits.total_bytes:
        raise BundleError(
            f"the snapshot has more than {limits.total_bytes} bytes: data belongs into a bucket"
        )


# --- Unpacking --------------------------------------------------------------------------------------


def unpack(
    archive: Iterable[bytes],
    version: str,
    destination: Path,
    limits: Limits = DEFAULT_LIMITS,
    *,
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Make `destination` the tree of the snapshot `version`, whose gzip-compressed tar comes as `archive`.

    `finish` is called with the verified tree before it appears.
    The digest is verified first. `destination` appears complete and at once (a rename), or not at all; if it is there
    already, or another process was faster, it stays as it is. Raises `BundleError`, and whatever `archive` raises.
    """
    expected = hex_of(version)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=destination.parent) as scratch:
        with Path(scratch, "snapshot.tar").open("w+b") as tar:
            found = _spool(archive, tar, limits)
            if found != expected:
                raise BundleError(
                    f"the archive's content is sha256:{found}, not {version}: it is damaged or forged"
                )
            tree = Path(scratch, "tree")
            tree.mkdir(mode=0o755)
            _extract(tar, tree, limits)
        finish(tree)
        try:
            tree.rename(destination)
        except OSError:
            # Another process was faster: its tree has the same digest.
            if not destination.is_dir():
                raise


def extract(archive: bytes, destination: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Extract a tar of unknown origin, gzip-compressed or not, into the empty directory `destination`."""
    with tempfile.TemporaryFile() as tar:
        if archive.startswith(_GZIP_MAGIC):
            _spool([archive], tar, limits)
        else:
            tar.write(archive)
            tar.seek(0)
        _extract(tar, destination, limits)


def _spool(archive: Iterable[bytes], tar: BinaryIO, limits: Limits) -> str:
    """Decompress into `tar`, rewind it, and return the hexadecimal SHA-256 of its content."""
    digest = hashlib.sha256()
    total = 0
    # Counted as it is decompressed: a few kilobytes may expand to gigabytes.
    for piece in decompress(archive):
        total += len(piece)
        if total > limits.tar_bytes:
            raise BundleError(f"the archive holds more than {limits.tar_bytes} bytes when decompressed")
        digest.update(piece)
        tar.write(piece)
    tar.seek(0)
    return digest.hexdigest()


def decompress(archive: Iterable[bytes]) -> Iterator[bytes]:
    """Gunzip a stream in pieces of bounded size, however well it was compressed."""
    # 31 is the largest window, with a gzip header and trailer instead of zlib's.
    gunzip = zlib.decompressobj(wbits=31)
    try:
        for chunk in archive:
            pending = chunk
            while pending and not gunzip.eof:
                piece = gunzip.decompress(pending, _COPY_BYTES)
                if piece:
                    yield piece
                pending = gunzip.unconsumed_tail
        while not gunzip.eof and (piece := gunzip.decompress(gunzip.unconsumed_tail, _COPY_BYTES)):
            yield piece
    except zlib.error as error:
        raise BundleError(f"the archive is not gzip: {error}") from error
    if not gunzip.eof:
        raise BundleError("the archive ends before its end", transient=True)


def _extract(tar: BinaryIO, destination: Path, limits: Limits) -> None:
    count = total = 0
    for seen, member in enumerate(tar_reader.members(tar)):
        if seen > _MEMBERS_PER_FILE * limits.files:
            raise BundleError(f"the archive has more than {seen} members")
        if member.kind is Kind.DIRECTORY or _skips(member.name):
            continue
        count += 1
        total += member.size
        _check_member(member, limits)
        _check_bounds(count, total, limits)
        _write(destination, member, tar_reader.read(tar, member))


def _skips(name: str) -> bool:
    return any(folder.is_ignored(part) for part in PurePosixPath(name).parts)


def _check_member(member: Member, limits: Limits) -> None:
    if member.kind is not Kind.FILE:
        raise BundleError(
            f"{member.name!r} in the archive is not a regular file: links and devices are refused"
        )
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\x00" in member.name:
        raise BundleError(f"{member.name!r} in the archive is not a plain relative path")
    if len(path.parts) > folder.MOST_LEVELS + 1:
        raise BundleError(
            f"{member.name[:80]!r}... in the archive is within {len(path.parts) - 1} directories: at most {folder.MOST_LEVELS} are allowed"
        )
    if member.size > limits.file_bytes:
        raise BundleError(
            f"{member.name} has {member.size} bytes: a file of DAG code has at most {limits.file_bytes}"
        )


def _write(destination: Path, member: Member, content: bytes) -> None:
    """Write one file, read-only. Its time is now: the dag-processor parses files first that changed last."""
    target = destination / member.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o555 if member.mode & stat.S_IXUSR else 0o444
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except (FileExistsError, NotADirectoryError) as error:
        raise BundleError(f"{member.name!r} occurs twice in the archive") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise BundleError(f"{member.name[:80]!r}... in the archive is too long a name") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)  # a cached tree must be whole after a power cut: it may be needed offline
