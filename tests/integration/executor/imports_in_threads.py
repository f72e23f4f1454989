"""Start an executor, and print as JSON what its threads import, and which of them is the first to: run by `test_components`."""

from __future__ import annotations

import json
import sys
import threading
import time

from airbridge.executor import EdgeExecutor
from airbridge.executor import _airflow as internals
from airbridge.executor.ledger.models import EventRow

REGIONS = 2
imported: dict[str, str] = {}


def note(event: str, arguments: tuple[object, ...]) -> None:
    """Note an import that is not answered from `sys.modules`."""
    name = threading.current_thread().name
    if event == "import" and name.startswith("airbridge-"):
        imported.setdefault(str(arguments[0]), name)


def sent() -> bool:
    """Return whether an item of each region has been sent."""
    with internals.new_session() as session:
        return bool(session.query(EventRow).filter(EventRow.event == "item.sent").count() >= REGIONS)


def main() -> None:
    """Run until the items are sent and each loop has turned a few times."""
    sys.addaudithook(note)
    executor = EdgeExecutor(parallelism=8)
    executor.job_id = 1
    executor.start()
    deadline = time.monotonic() + 30
    while not sent() and time.monotonic() < deadline:
        time.sleep(0.1)
    # Longer than the interval at which scaling is published.
    time.sleep(1)
    executor.end()
    print(json.dumps({"sent": sent(), "imported": imported}))


if __name__ == "__main__":
    main()
