"""Two regions with bundle buckets on moto server, and a folder of DAGs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from tests.support.moto import Moto

from airbridge.core.catalogue import Catalogue
from airbridge.core.code.signature import PUBLISH_KEY
from airbridge.core.signing import Signer
from airbridge.executor.bundles.registry import MemoryRegistry, ledger_registry
from airbridge.executor.bundles.store import BundleStore

REGIONS = ("us-east-1", "eu-west-1")
GOOD = 'from airflow.sdk import DAG\n\nwith DAG("{dag_id}"):\n    pass\n'


def write_dag(folder: Path, name: str, dag_id: str) -> None:
    """Write a DAG file that parses."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(GOOD.format(dag_id=dag_id))


def write_publishing_key(secrets_dir: Path) -> None:
    """Write the key that signs snapshots."""
    secrets_dir.mkdir(parents=True, exist_ok=True)
    (secrets_dir / PUBLISH_KEY).write_bytes(Signer.generate().to_pem())


def ledger_store(cloud: Cloud, bundle: str, secrets_dir: Path) -> BundleStore:
    """A bundle's store over Airflow's database, as the dag-processor and the gateway have it."""
    return BundleStore.of(bundle, cloud.catalogue, ledger_registry(secrets_dir))


@dataclass(frozen=True)
class Cloud:
    """Two regions on moto, and the catalogue file that describes them."""

    moto: Moto
    catalogue_file: Path

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue.read(self.catalogue_file)

    registry: MemoryRegistry = field(default_factory=MemoryRegistry)

    def store(self, bundle: str = "dags") -> BundleStore:
        return BundleStore.of(bundle, self.catalogue, self.registry)

    def keys(self, region: str) -> list[str]:
        found = self.catalogue.region(region)
        assert found is not None
        listed = self.moto.client("s3", region).list_objects_v2(Bucket=found.bundle_bucket)
        return [entry["Key"] for entry in listed.get("Contents", ())]


@pytest.fixture
def cloud(moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    suffix = uuid4().hex[:12]
    lines = [f'home_region = "{REGIONS[0]}"']
    for region in REGIONS:
        bundles = moto.bucket(f"dags-{region}-{suffix}", region)
        lines += [
            "[[region]]",
            f'name = "{region}"',
            f'log_bucket = "logs-{region}-{suffix}"',
            f'bundle_bucket = "{bundles}"',
            f'endpoint_url = "{moto.url}"',
            "[[region.pool]]",
            f'queue_url = "{moto.url}/{region}/queue-{suffix}"',
        ]
    catalogue_file = tmp_path / "regions.toml"
    catalogue_file.write_text("\n".join(lines))
    return Cloud(moto, catalogue_file)


@pytest.fixture
def dags(tmp_path: Path) -> Path:
    folder = tmp_path / "dags"
    write_dag(folder, "one.py", "one")
    return folder
