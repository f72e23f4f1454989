"""Two teams on a local platform: a bundle each, from a folder each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airbridge.control_plane.airflow_settings import Bundle, dag_bundles


def two_teams(root: Path, sources: Mapping[str, str], **settings: str) -> dict[str, Any]:
    """Write a DAG file and a bundle ``<team>-dags`` for each team, and the file of teams; return the platform's options for them."""
    bundles = []
    for team, source in sources.items():
        folder = root / team
        folder.mkdir()
        (folder / f"{team}.py").write_text(source)
        bundles.append(Bundle(f"{team}-dags", {"kind": "folder", "path": str(folder)}))
    teams = root / "teams.toml"
    teams.write_text("".join(f'[[team]]\nname = "{team}"\nbundles = ["{team}-dags"]\n' for team in sources))
    airflow = {"dag_processor.dag_bundle_config_list": dag_bundles(bundles).value, **settings}
    return {"airflow": airflow, "teams": teams}
