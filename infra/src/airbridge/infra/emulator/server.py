"""The emulator's process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airbridge.infra.emulator import fixes


def serve(host: str, port: int, record: Path | None = None, names: tuple[str, ...] = fixes.NAMES) -> None:
    """Serve until the process is ended. `record`: a file that lists every action that was called."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import run_simple

    fixes.apply(names)
    if record is not None:
        from airbridge.infra.emulator.fixes.authorisation import recorder

        recorder.file = record
    application: Any = DomainDispatcherApplication(create_backend_app)
    run_simple(host, port, application, threaded=True, request_handler=MotoRequestHandler)
