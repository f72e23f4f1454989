"""``airbridge gateway``: the process that workers and operators connect to."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: AIRFLOW_HOME=/etc/airbridge/airflow airbridge gateway")(gateway)


def gateway() -> None:
    """Serve workers and operators until SIGTERM. Its settings are section airbridge of Airflow's configuration."""
    from airbridge.control_plane.dags import publisher
    from airbridge.control_plane.gateway import server
    from airbridge.executor import settings

    read = settings.load()
    server.run(read, publisher(read))
