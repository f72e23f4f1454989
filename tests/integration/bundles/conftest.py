"""Room on disk for as many dag-processors as a test wants, over the same two regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.airflow_home import Metadata
from tests.support.cloud import Cloud, cloud, dags

from airbridge.executor.bundle import AirBridgeBundle

__all__ = ["cloud", "dags"]  # fixtures


@dataclass(frozen=True)
class Processor:
    """A dag-processor's machine: its own disk, the shared regions."""

    cloud: Cloud
    disk: Path
    monkeypatch: pytest.MonkeyPatch

    def bundle(self, source: Mapping[str, Any], version: str | None = None, **kwargs: Any) -> AirBridgeBundle:
        """A bundle as a new process of this machine would make it; unchecked (2 s a version) unless asked for."""
        self.monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(self.disk))
        kwargs = {"store": self.cloud.store(), "refuse_broken": False, **kwargs}
        return AirBridgeBundle(name="dags", source=source, version=version, refresh_interval=0, **kwargs)


@pytest.fixture
def processor(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_metadata: Metadata
) -> Processor:
    return Processor(cloud, tmp_path / "disk-1", monkeypatch)


@pytest.fixture
def other_processor(processor: Processor, tmp_path: Path) -> Processor:
    return Processor(processor.cloud, tmp_path / "disk-2", processor.monkeypatch)
