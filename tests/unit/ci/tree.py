"""A copy of the project's own files in which to plant disagreements: released once, so that every check has something to read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from airbridge.ci.checkout import Checkout, Source
from airbridge.ci.images.specs import ARCHITECTURES
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.inventory import registry
from airbridge.ci.release import keys, pins, previous
from airbridge.ci.release.manifest import (
    Manifest,
    Part,
    Release,
    ReleasedImage,
    ReleaseVersions,
    encode,
    key_id,
    parse,
)
from airbridge.ci.tools import run

ROOT = Path(__file__).parents[3]
#: The files that parity compares; those that the inventory names come on top. Of the rest a scan would only take time.
PATTERNS = (
    "pyproject.toml",
    "*/pyproject.toml",
    "Makefile",
    "CHANGELOG.md",
    "README.md",
    "compatibility.toml",
    "images/*",
    "ci/*.toml",
    "infra/environments/*.toml",
    "infra/src/**/*.py",
    "core/src/airbridge/core/protocol.py",
    ".github/**/*.yml",
)
COMMITTED = datetime(2026, 1, 10, 12, tzinfo=UTC)
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
# Numbers below this are releases of commits that `start_history` makes.
RELEASES = 6
STACK = "infra/cdktf.out/staging/stacks/edge-eu-west-1/cdk.tf.json"


def digest(number: int) -> str:
    """A digest that is nobody's placeholder."""
    return f"sha256:{number:064x}"


@dataclass(frozen=True)
class Tree:
    """The copy. Every edit names a pattern that must be there, so that no planted disagreement misses its place."""

    root: Path
    key: Ed25519PrivateKey

    @property
    def checkout(self) -> Checkout:
        """A fresh reading of the files."""
        return Checkout(self.root)

    def read(self, path: str) -> str:
        """A file's text."""
        return (self.root / path).read_text(encoding="utf-8")

    def write(self, path: str, text: str) -> None:
        """Replace or make a file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def edit(self, path: str, pattern: str, replacement: str, count: int = 1) -> None:
        """Replace what `pattern` matches."""
        text, found = re.subn(pattern, replacement, self.read(path), count=count, flags=re.MULTILINE)
        assert found, f"{path}: nothing matches {pattern}"
        self.write(path, text)

    def append(self, path: str, text: str) -> None:
        """Add to a file's end."""
        self.write(path, self.read(path) + text)

    def release(self, number: int = 1, **versions: object) -> Manifest:
        """A signed release of the tree's own versions."""
        facts = Facts(self.checkout)
        inside = {
            "airbridge": facts.version,
            "airflow": facts.locked_version("apache-airflow-core"),
            "task_sdk": facts.locked_version("apache-airflow-task-sdk"),
            "python": "3.12.14",
            "protocol": facts.protocol,
        }
        images = {
            name: _image(number * 1000 + offset) for offset, name in enumerate(sorted(pins.KEYS.values()))
        }
        release = Release(
            revision=_commit_id(number),
            committed_at=COMMITTED + timedelta(days=number),
            versions=ReleaseVersions.model_validate(inside | versions),
            base="python:3.12-slim-bookworm@" + digest(number),
            images=images,
        )
        return Manifest(release=release).signed(self.key)

    def pin(self, environment: str, manifest: Manifest) -> None:
        """Put an environment on a release, as a promotion does."""
        found = pins.load(self.checkout, environment)
        control_plane = manifest.release.images[pins.KEYS["control_plane"]].digest
        path, release = pins.toml_path(environment), pins.release_path(environment)
        moved = found.moved(pins.WorkerImages.of(manifest.release), control_plane)
        known = [parse(self.read(release), release)] if (self.root / release).exists() else []
        kept = previous.text_of(
            pins.Pins(Source(path, moved)), [*known, *previous.load(self.checkout, environment)]
        )
        self.write(path, moved)
        self.write(release, manifest.text())
        if kept is not None:
            self.write(previous.path(environment), kept)


def start_history(tree: Tree, subject: str) -> None:
    """Put the tree under Git, with the commits that its releases were built from in the branch's history."""
    git(tree, "init", "--quiet")
    git(tree, "config", "user.name", "t")
    git(tree, "config", "user.email", "t@example.com")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", subject)
    built = []
    for number in range(RELEASES):
        command = ("git", "hash-object", "-t", "commit", "-w", "--stdin", "--literally")
        built.append(run(*command, cwd=tree.root, stdin=_commit_of(number)).strip())
    git(tree, "hash-object", "-t", "tree", "-w", "/dev/null")
    git(tree, "merge", "--quiet", "-s", "ours", "--allow-unrelated-histories", "-m", "Built releases", *built)


def git(tree: Tree, *words: str) -> str:
    """Run Git in the tree with a placeholder identity."""
    return run("git", "-c", "user.name=t", "-c", "user.email=t@example.com", *words, cwd=tree.root)


def _commit_of(number: int) -> bytes:
    """A commit without files, the same in every repository."""
    person = f"t <t@example.com> {int((COMMITTED + timedelta(days=number)).timestamp())} +0000"
    return f"tree {EMPTY_TREE}\nauthor {person}\ncommitter {person}\n\nRelease {number}\n".encode()


def _commit_id(number: int) -> str:
    content = _commit_of(number)
    return hashlib.sha1(b"commit %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _image(number: int) -> ReleasedImage:
    parts = {
        architecture: Part(
            digest=digest(number + 100 * step),
            config=digest(number + 100 * step + 20),
            sbom=digest(number + 100 * step + 40),
            compressed_bytes=1,
        )
        for step, architecture in enumerate(ARCHITECTURES, start=1)
    }
    return ReleasedImage(digest=digest(number), parts=dict(parts))


def files() -> list[str]:
    """Paths of the project's files that the copy has."""
    known = registry.load(Checkout(ROOT))
    named = {entry.file for entry in (*known.place, *known.held, *known.lines)} | set(known.seal)
    matched = {str(path.relative_to(ROOT)) for pattern in PATTERNS for path in ROOT.glob(pattern)}
    return sorted(path for path in matched | (named - {None}) if (ROOT / path).is_file())


def plant_tree(root: Path) -> Tree:
    """Copy the project; trust a new key; put all three environments on one release; synthesise a small stack."""
    for path in files():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    key = Ed25519PrivateKey.generate()
    tree = Tree(root, key)
    public = key.public_key()
    entry = f'[[key]]\nkid = "{key_id(public)}"\npublic_key = "{encode(public.public_bytes_raw())}"\nowner = "tests"\n'
    tree.write(keys.FILE, entry)
    for environment in ("dev", "staging", "prod"):
        tree.pin(environment, tree.release())
    tree.write(STACK, stack(tree, "staging"))
    return tree


def stack(tree: Tree, environment: str, **changes: str) -> str:
    """A synthesised stack as far as images are concerned: a container definition and an instance's boot script."""
    found = pins.load(tree.checkout, environment)
    registry = "222222222222.dkr.ecr.eu-west-1.amazonaws.com"
    references = {
        key: f"{registry}/airbridge-{environment}/{found.images[key]}" for key in pins.KEYS
    } | changes
    boot = f"#!/bin/bash\ndocker run --read-only {references['worker']} airbridge-worker run\n"
    definition = json.dumps([{"name": "scheduler", "image": references["control_plane"]}])
    return json.dumps(
        {
            "resource": {
                "aws_ecs_task_definition": {"scheduler": {"container_definitions": definition}},
                "aws_launch_template": {"default": {"user_data": base64.b64encode(boot.encode()).decode()}},
            }
        },
        indent=2,
    )
