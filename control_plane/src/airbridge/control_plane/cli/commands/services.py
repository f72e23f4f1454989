"""``airbridge gateway`` and ``airbridge dag-processor``: the services of the control plane that are AirBridge's own."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: AIRFLOW_HOME=/etc/airbridge/airflow airbridge gateway")(gateway)
    app.command(
        "dag-processor",
        epilog="Example: AIRFLOW_HOME=/etc/airbridge/airflow airbridge dag-processor",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(dag_processor)


def gateway() -> None:
    """Serve workers and operators until SIGTERM. Settings: section [airbridge] of Airflow's configuration."""
    from airbridge.control_plane.dags import publisher
    from airbridge.control_plane.environments import receiver
    from airbridge.control_plane.gateway import server
    from airbridge.executor import settings

    read = settings.load()
    server.run(read, publisher(read).steps, receiver(read))


def dag_processor(context: typer.Context) -> None:
    """Parse DAG files until SIGTERM, sandboxed. Further arguments are those of `airflow dag-processor`."""
    from airbridge.control_plane.dag_processing import service

    service.run(context.args)
