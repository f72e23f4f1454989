"""Samples of the demo: a DAG, and a little real data for each region's bucket (see data/README.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DAG_ID = "near_the_data"
RESULT_TASK = "compare"
LOGGED_TASK = "nottingham_1930s"
# Region that each task of the DAG must run in: that of its bucket; the last one, the home region.
REGION_OF_DATA = {
    "new_york_temperature": "us-east-1",
    "new_york_ozone": "us-east-1",
    "nottingham_1920s": "eu-west-1",
    "nottingham_1930s": "eu-west-1",
    "compare": "us-east-1",
}
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class DataObject:
    """Sample file, and the region of its data bucket."""

    region: str
    key: str
    path: Path


def dags_folder() -> Path:
    """Return the folder of sample DAGs inside the installed package."""
    return _HERE / "dags"


def data_objects() -> Iterator[DataObject]:
    """Yield every sample object, in a stable order."""
    for path in sorted((_HERE / "data").glob("*/*.csv")):
        yield DataObject(region=path.parent.name, key=f"weather/{path.name}", path=path)
