"""A queue keeps its policy when other attributes are set, and its redrive policy as it was written.

moto sets a queue's policy to nothing on any later SetQueueAttributes that does not repeat it, writes the redrive policy's
JSON in its own way, which Terraform sees as a change at every plan, and never gives back a redrive allow policy.
"""

from __future__ import annotations

from typing import Any

from moto.sqs.models import Queue

_AS_WRITTEN = ("RedriveAllowPolicy", "RedrivePolicy")


def apply() -> None:
    """Keep what SetQueueAttributes did not name."""
    queue: Any = Queue
    replace = queue._set_attributes  # noqa: SLF001  # moto's one place where attributes are set
    read = queue.attributes.fget

    def keep(self: Any, attributes: dict[str, Any], now: float | None = None) -> None:
        policy = self.policy if "Policy" not in attributes and hasattr(self, "_policy_json") else None
        replace(self, attributes, now)
        if policy is not None:
            self.policy = policy
        written = {name: attributes[name] for name in _AS_WRITTEN if name in attributes}
        self.as_written = {**getattr(self, "as_written", {}), **written}

    def attributes(self: Any) -> dict[str, Any]:
        return {**read(self), **{name: text for name, text in getattr(self, "as_written", {}).items() if text}}

    queue._set_attributes = keep  # noqa: SLF001
    queue.attributes = property(attributes)
