"""A stack as a reviewer reads it: one line for each thing that is set, references by path, policies in words."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterator
from typing import Any

from airbridge.infra import packing

_REFERENCE = re.compile(r"\$\{(?:data\.)?([a-z0-9_]+)\.([A-Za-z0-9_-]+)\.([^}]+)\}")


def summarise(stack: dict[str, Any]) -> str:
    """The stack's resources, by path."""
    stack = copy.deepcopy(stack)
    paths = {
        (kind, name): resource["//"]["metadata"]["path"].split("/", 1)[1]
        for kind, named in stack["resource"].items()
        for name, resource in named.items()
    }
    blocks = []
    said: dict[str, str] = {}
    for (kind, name), path in sorted(paths.items(), key=lambda item: (item[1], item[0])):
        lines = [f"{path} ({kind})"]
        if kind == "aws_ecs_task_definition":
            _say_environments_once(stack["resource"][kind][name], path, said)
        if kind == "aws_cloudwatch_metric_alarm":
            blocks.append(f"{lines[0]} {_alarm(stack['resource'][kind][name], paths)}")
            continue
        if kind == "aws_cloudwatch_dashboard":
            said_of_it = _dashboard(stack["resource"][kind][name])
            blocks.append("\n".join([*lines, *(f"  {line}" for line in said_of_it)]))
            continue
        lines += [f"  {line}" for line in _lines(stack["resource"][kind][name], paths)]
        blocks.append("\n".join(lines))
    return "\n".join(blocks) + "\n"


def _say_environments_once(definition: dict[str, Any], path: str, said: dict[str, str]) -> None:
    """Replace repeated environments of containers by a reference: the services share theirs, so a change of it is one change."""
    containers = json.loads(definition["container_definitions"])
    for container in containers:
        environment = json.dumps(container["environment"], sort_keys=True)
        if environment in said:
            container["environment"] = f"as in {said[environment]}"
        else:
            said[environment] = f"{path}, {container['name']}"
    definition["container_definitions"] = json.dumps(containers)


def _dashboard(dashboard: dict[str, Any]) -> Iterator[str]:
    """A dashboard, one line for each chart."""
    for widget in json.loads(dashboard["dashboard_body"])["widgets"]:
        drawn = widget["properties"]
        lines = [
            one[0]["expression"] if isinstance(one[0], dict) else " ".join(map(str, one))
            for one in drawn["metrics"]
        ]
        yield f"{drawn['title']} ({drawn['view']}, {drawn['region']}, {drawn['period']} s): {'; '.join(lines)}"


def _alarm(alarm: dict[str, Any], paths: dict[tuple[str, str], str]) -> str:
    """Describe an alarm in one line: metrics, threshold, duration and actions."""
    alone = "metric_name" in alarm
    looks = [alarm] if alone else [one["metric"] for one in alarm["metric_query"] if "metric" in one]
    first, where = looks[0], []
    for one in looks:
        pairs = [
            f"{name}={_readable(value, paths)}" for name, value in sorted(one.get("dimensions", {}).items())
        ]
        where.append(f"{{{', '.join(pairs)}}}")
    statistic = first.get("statistic") or first.get("extended_statistic") or first["stat"]
    told = ", ".join(_readable(one, paths) for one in alarm["alarm_actions"])
    return (
        f"{statistic} {first['namespace']} {first['metric_name']} {' + '.join(where)} {alarm['comparison_operator']} "
        f"{alarm['threshold']:g}, {alarm['evaluation_periods']} x {first['period']} s, {alarm['treat_missing_data']}: {told}"
    )


def _lines(resource: dict[str, Any], paths: dict[tuple[str, str], str]) -> Iterator[str]:
    accepted = resource.get("//", {}).get("checkov", {})
    for key, value in sorted(resource.items()):
        if key == "//" or (key == "provisioner"):
            continue
        shown = _without_common_tags(value) if key in {"tags", "tag"} else value
        if key == "user_data":
            yield "user_data: |"
            yield from (f"  {line}" for line in base64.b64decode(value).decode().splitlines())
        elif shown not in ({}, []):
            yield from _flat(key, shown, paths)
    for check in sorted(accepted):
        yield f"accepts {check}"


def _flat(key: str, value: Any, paths: dict[tuple[str, str], str]) -> Iterator[str]:
    if isinstance(value, str) and value[:1] in "{[" and _is_json(value):
        value = json.loads(value)
        if isinstance(value, dict) and "Statement" in value:
            yield from (f"{key}: {_statement(one, paths)}" for one in value["Statement"])
            return
    if isinstance(value, dict):
        for inner, item in sorted(value.items()):
            yield from _flat(f"{key}.{inner}", item, paths)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _item(key, index, item, paths)
    else:
        yield f"{key}: {_readable(value, paths)}"


def _item(key: str, index: int, item: Any, paths: dict[tuple[str, str], str]) -> Iterator[str]:
    """Flatten an item of a list under its name, if it has one, so that an insertion moves nothing else."""
    if isinstance(item, dict) and str(item.get("name")).startswith("AIRBRIDGE_FILE_"):
        yield f"{key}[{item['name']}]: |"
        yield from (f"  {line}" for line in packing.unpack(item["value"]).splitlines())
    elif isinstance(item, dict) and isinstance(item.get("name"), str):
        rest = {inner: value for inner, value in item.items() if inner != "name"}
        alone = next(iter(rest.values())) if len(rest) == 1 else rest
        yield from _flat(f"{key}[{item['name']}]", alone, paths)
    else:
        yield from _flat(f"{key}[{index}]", item, paths)


def _statement(one: dict[str, Any], paths: dict[tuple[str, str], str]) -> str:
    words = [one["Effect"], _readable(one["Action"], paths)]
    if "Principal" in one:
        words.append(f"by {_readable(json.dumps(one['Principal']), paths)}")
    if "Resource" in one:
        words.append(f"on {_readable(one['Resource'], paths)}")
    if "Condition" in one:
        words.append(f"if {_readable(json.dumps(one['Condition'], sort_keys=True), paths)}")
    return " ".join(words)


def _readable(value: Any, paths: dict[tuple[str, str], str]) -> str:
    text = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return _REFERENCE.sub(lambda match: f"<{paths.get((match[1], match[2]), match[2])}.{match[3]}>", text)


def _without_common_tags(tags: Any) -> Any:
    if isinstance(tags, dict):
        return {key: value for key, value in tags.items() if not key.startswith("airbridge:")}
    return [tag for tag in tags if not tag["key"].startswith("airbridge:")]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
