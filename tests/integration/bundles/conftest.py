"""Dag-processors for a test, each with a disk of its own, over the same two regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.airflow_home import Metadata
from tests.support.cloud import Cloud, cloud, dags

from airbridge.executor.bundles.bundle import AirBridgeBundle

__all__ = ["cloud", "dags"]  # fixtures


@dataclass(frozen=True)
class Processor:
    """A dag-processor's machine: its own disk, the shared regions."""

    cloud: Cloud
    disk: Path
    monkeypatch: pytest.MonkeyPatch

    def bundle(self, source: Mapping[str, Any], version: str | None = None, **kwargs: Any) -> AirBridgeBundle:
        """Return a bundle as a new process of this machine would create it; unchecked (a check takes 2 s a version) by default."""
        self.monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(self.disk))
        kwargs = {"store": self.cloud.store(), "refuse_broken": False, "refresh_interval": 0, **kwargs}
        return AirBridgeBundle(name="dags", source=source, version=version, **kwargs)


@pytest.fixture
def processor(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_metadata: Metadata
) -> Processor:
    return Processor(cloud, tmp_path / "disk-1", monkeypatch)


@pytest.fixture
def other_processor(processor: Processor, tmp_path: Path) -> Processor:
    return Processor(processor.cloud, tmp_path / "disk-2", processor.monkeypatch)
