"""Contents of the edge worker's image: each distribution is imported by something that runs there, or listed with a reason."""

from __future__ import annotations

import re
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest
from tests.integration.ci.imports import Installed
from tests.unit.ci.tree import ROOT

from airbridge.ci.checkout import Checkout
from airbridge.ci.images.inventory import normalise
from airbridge.ci.images.specs import EDGE_WORKER
from airbridge.ci.images.wheelhouse import left_out
from airbridge.ci.tools import run

#: What runs on an edge host: the worker, and tasks under the Task SDK with the standard provider.
ROOTS = ("airbridge", "airflow.sdk", "airflow.providers.standard")


def locked(*left: str) -> set[str]:
    """Return the third-party distributions of the edge worker's export, without some."""
    options = [word for name in left for word in ("--no-emit-package", name)]
    text = run(
        ROOT / ".tools/bin/uv", "export", "--quiet", "--frozen", "--no-header", "--no-annotate", "--no-hashes",
        "--no-emit-workspace", "--no-default-groups", "--package", EDGE_WORKER.package, *options, cwd=ROOT,
    )  # fmt: skip
    return {normalise(found[1]) for found in re.finditer(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}


def listed(table: str) -> set[str]:
    """Return the names in a table of images/edge-worker.toml."""
    return set(Checkout(ROOT).source(EDGE_WORKER.contents).toml[table])


def test_left_out_is_not_exported() -> None:
    """What the file leaves out is a dependency in the lock, and no requirement of the image."""
    names = left_out(Checkout(ROOT), EDGE_WORKER)
    assert set(names) <= locked(), "an entry that leaves nothing out"
    assert not set(names) & locked(*names)


@pytest.mark.slow("make demo-images")
def test_each_distribution_has_a_reason() -> None:
    """Followed from what runs on an edge host, imports reach all that is in the image but what is kept for a reason."""
    # What the lock has for other systems is in no image.
    everything = locked() & {normalise(each.metadata["Name"]) for each in distributions()}
    installed = Installed(Path(sysconfig.get_path("purelib")), frozenset(everything))
    installed.add("airbridge-core", ROOT / "core/src")
    installed.add("airbridge-edge-worker", ROOT / "edge_worker/src")
    reached = installed.reached(ROOTS)
    assert reached & listed("left-out") == set(), "left out, and imported"
    assert everything - reached - listed("left-out") == listed("kept"), "neither imported nor listed"
