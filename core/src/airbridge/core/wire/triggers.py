"""Wire models of triggers; exported by `airbridge.core.protocol`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from pydantic import AwareDatetime, Field

from airbridge.core.wire.message import Message

# Path of the record by which a worker reports a trigger's event.
TRIGGER_EVENT: Final = "airbridge/trigger-event"

# Capability of workers that run the triggers of deferred tasks.
TRIGGERS: Final = "triggers"


class ItemKind(StrEnum):
    """Kind of a work item. A worker of an older version takes each for a task, and is refused the others."""

    TASK = "task"
    TRIGGER = "trigger"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> ItemKind:
        return cls.UNKNOWN


class TriggerSpec(Message):
    """A trigger as Airflow has it. `encoded_kwargs` is the JSON of Airflow's own serialisation."""

    trigger_id: int
    classpath: str
    encoded_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    timeout_after: AwareDatetime | None = None
