"""Installed versions, for the compatibility matrix."""

from __future__ import annotations

import platform
from importlib.metadata import version

from airbridge.core.protocol import TRIGGERS, Versions


def installed(image: str | None = None) -> Versions:
    """Return the versions of what is installed here; `image` is the digest of the container image, if known."""
    return Versions(
        airbridge=version("airbridge-edge-worker"),
        airflow=version("apache-airflow-core"),
        task_sdk=version("apache-airflow-task-sdk"),
        python=platform.python_version(),
        image=image,
        capabilities=(TRIGGERS,),
    )
