"""The chart of workers on Kubernetes, its example values, and the manifests that it was last rendered to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "infra/helm/airbridge-worker"
SNAPSHOTS = Path(__file__).parent / "snapshots"
EXAMPLES = ("smallest", "everything", "cluster", "keys")

Manifest = dict[str, Any]


def digest() -> str:
    """Return the digest of all that the manifests are made from."""
    found = hashlib.sha256()
    for file in sorted(each for each in CHART.rglob("*") if each.is_file()):
        found.update(f"{file.relative_to(CHART)}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()


def values(example: str) -> dict[str, Any]:
    """Return the values of an example."""
    found: dict[str, Any] = yaml.safe_load((CHART / "ci" / f"{example}.yaml").read_text())
    return found


def snapshot(example: str) -> Path:
    """Return the file of the manifests of an example."""
    return SNAPSHOTS / f"{example}.yaml"


def manifests(text: str) -> list[Manifest]:
    """Return the manifests in a text."""
    return [each for each in yaml.safe_load_all(text) if each]


def of_kind(example: str, kind: str) -> Manifest:
    """Return the one manifest of a kind of an example's snapshot."""
    (found,) = (each for each in manifests(snapshot(example).read_text()) if each["kind"] == kind)
    return found
