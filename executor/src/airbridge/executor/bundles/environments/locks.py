"""The lock of an environment as a file of its snapshot: requirements with hashes, a section for each machine."""

from __future__ import annotations

from collections.abc import Mapping


def as_text(locks: Mapping[str, str]) -> bytes:
    """Return the locks of all machines as one file."""
    return "".join(f"# {machine}\n{lock}" for machine, lock in sorted(locks.items())).encode()
