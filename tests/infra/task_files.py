"""Files that task definitions have in themselves, unpacked."""

from __future__ import annotations

import json
from typing import Any

from tests.infra.conftest import Stacks

_PREFIX = "AIRBRIDGE_FILE_"


def main_container(stacks: Stacks, service: str) -> dict[str, Any]:
    """Return the container of a service that its definition is named after."""
    definitions = stacks["control-plane"]["resource"]["aws_ecs_task_definition"].values()
    [found] = [one for one in definitions if one["family"].endswith(f"-{service}")]
    [main] = [one for one in json.loads(found["container_definitions"]) if one["name"] == service]
    return dict(main)


def files(stacks: Stacks, service: str) -> dict[str, str]:
    """Return what is packed into a service's definition, by the rest of its variable's name."""
    from airbridge.infra import packing

    return {
        each["name"].removeprefix(_PREFIX): packing.unpack(each["value"])
        for each in main_container(stacks, service)["environment"]
        if each["name"].startswith(_PREFIX)
    }


def regions(stacks: Stacks, service: str = "scheduler") -> str:
    """Return the region catalogue that a service reads."""
    return files(stacks, service)["REGIONS_TOML"]
