"""Reading of environment files: every problem is reported at once, with the file and the key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from airbridge.infra import validation
from airbridge.infra.environment import quotas, site_rules
from airbridge.infra.environment.document import Environment
from airbridge.infra.exceptions import EnvironmentFileError


def parse(data: dict[str, Any], source: str) -> Environment:
    """The environment in `data`; EnvironmentFileError or UnsafeStackError name `source` and every wrong key."""
    try:
        environment = Environment.model_validate(data)
    except ValidationError as error:
        problems = [f"{source}: {_key(item['loc'])}: {_reason(item)}" for item in _own_problems(error)]
        raise EnvironmentFileError("\n".join(problems)) from error
    validation.check(environment, source, (*site_rules.problems(environment), *quotas.problems(environment)))
    return environment


def load(path: Path) -> Environment:
    """The environment written in a file, whose name must be the environment's."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml"))) or "none"
        raise EnvironmentFileError(f"{path}: no such environment; there are: {known}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EnvironmentFileError(f"{path}: {error}") from error
    environment = parse(data, str(path))
    if environment.name != path.stem:
        raise EnvironmentFileError(f"{path}: name: is {environment.name!r}, the file says {path.stem!r}")
    return environment


def _own_problems(error: ValidationError) -> list[Any]:
    """Without "too short": pydantic reports it for a list whose invalid items it has just left out."""
    items = error.errors()
    wrong = {item["loc"][:depth] for item in items for depth in range(1, len(item["loc"]))}
    return [item for item in items if item["loc"] not in wrong]


def _key(location: tuple[int | str, ...]) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key or "(the whole file)"


def _reason(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] in {"missing", "extra_forbidden"}:
        return message
    return f"{message} (it is {item['input']!r})"
