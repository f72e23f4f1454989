"""A derived worker image runs in the pool that names it, the platform's in the others: built, published, pulled and run by digest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"

TOOLS = ("buildah", "podman", "skopeo", "docker-registry")

pytestmark = [
    pytest.mark.slow("make demo-images"),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="make images-tools installs what this needs"
    ),
]


def run(*words: str | Path) -> str:
    """Run a command of the checkout; return its output."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def build() -> Path:
    """Images of the commit that is checked out; a build of it in dist/ is used."""
    head = run("git", "rev-parse", "HEAD").strip()
    manifest = DIST / "release.json"
    if not manifest.exists() or json.loads(manifest.read_text())["release"]["revision"] != head:
        run("airbridge-ci", "build", "--base", "debian", "--out", DIST)
    return DIST


@pytest.mark.timeout(1200)
def test_tool_is_in_its_pool_alone(build: Path) -> None:
    """jq runs in the pool on the derived image; the region's default pool, on the platform's image, has none."""
    output = run(sys.executable, "ci/scripts/demo_images.py", build)
    assert "tools.with_it: jq-" in output
    assert "tools.without: none" in output
    digests = {
        line.split()[1].rstrip(":"): line.split()[-1]
        for line in output.splitlines()
        if line.startswith("worker ")
    }
    assert len(digests) == 3
    assert len(set(digests.values())) == 2
