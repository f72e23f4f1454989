"""A queue keeps its policy when other attributes are set, and gives its redrive policies back as AWS does.

moto sets a queue's policy to nothing on any later SetQueueAttributes that does not repeat it, writes the redrive policy's
JSON with spaces, where AWS has none, which Terraform sees as a change at every plan, and never gives back a redrive allow policy.
"""

from __future__ import annotations

import json
from typing import Any

from moto.sqs.models import Queue


def apply() -> None:
    """Keep what SetQueueAttributes did not name."""
    queue: Any = Queue
    queue.BASE_ATTRIBUTES = [*queue.BASE_ATTRIBUTES, "RedriveAllowPolicy"]
    queue.redrive_allow_policy = None
    replace = queue._set_attributes  # noqa: SLF001  # moto's one place where attributes are set
    read = queue.attributes.fget

    def keep(self: Any, attributes: dict[str, Any], now: float | None = None) -> None:
        policy = self.policy if "Policy" not in attributes and hasattr(self, "_policy_json") else None
        replace(self, attributes, now)
        if policy is not None:
            self.policy = policy
        allowed = attributes.get("RedriveAllowPolicy")
        if allowed is not None:
            self.redrive_allow_policy = json.loads(allowed) if allowed else None

    def attributes(self: Any) -> dict[str, Any]:
        result: dict[str, Any] = read(self)
        for name, value in (
            ("RedrivePolicy", self.redrive_policy),
            ("RedriveAllowPolicy", self.redrive_allow_policy),
        ):
            result.pop(name, None)
            if value:
                result[name] = json.dumps(value, separators=(",", ":"))
        return result

    queue._set_attributes = keep  # noqa: SLF001
    queue.attributes = property(attributes)
