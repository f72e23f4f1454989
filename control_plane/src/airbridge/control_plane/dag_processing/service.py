"""The dag-processor's process: ``airbridge dag-processor``, or ``python -m airbridge.control_plane.dag_processing.service``."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from functools import partial

from airbridge.control_plane.dag_processing import _airflow
from airbridge.control_plane.dag_processing.serialized_dags import SerializedDagCheck
from airbridge.control_plane.dag_processing.zygote_client import ZygoteClient
from airbridge.core.sandbox import confinement, hardening
from airbridge.executor import bundle_settings
from airbridge.executor.bundles import parse_environment

_CPU_GRACE_SECONDS = 10


def run(arguments: Sequence[str]) -> None:
    """Run Airflow's dag-processor with sandboxed parsing. Raises `SandboxError` where it is required and cannot be had."""
    hardening.harden()
    how = bundle_settings.load_parsing()
    confinement.check(required=how.required)
    zygote = ZygoteClient(
        partial(parse_environment.of, os.environ, how.environment),
        required=how.required,
        cpu_seconds=_airflow.file_timeout_seconds() + _CPU_GRACE_SECONDS,
    )
    atexit.register(zygote.stop)
    check = SerializedDagCheck.installed(how.trigger_classes)
    _airflow.name_own_files()
    _airflow.refuse_taken_ids()
    _airflow.version_dags_by_content()
    _airflow.install(zygote, how.variables, how.connections, check)
    _airflow.run(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
