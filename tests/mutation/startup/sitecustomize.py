"""Measure coverage in processes that a test starts: Python imports this module by itself when it finds it."""

from __future__ import annotations

import atexit
import os

if "AIRBRIDGE_MUTATION_DATA" in os.environ:
    from coverage import Coverage

    _measurement = Coverage(
        data_file=os.environ["AIRBRIDGE_MUTATION_DATA"],
        data_suffix=True,
        include=os.environ["AIRBRIDGE_MUTATION_FILES"].split(os.pathsep),
        concurrency=["thread", "greenlet"],
        context=os.environ.get("AIRBRIDGE_MUTATION_TEST"),
        config_file=False,
        messages=False,
    )
    _measurement.start()

    def _save() -> None:
        _measurement.stop()
        _measurement.save()

    atexit.register(_save)
