"""Kinds of values that the control plane's settings have, and their reading from the text of a configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import MISSING, Field
from enum import StrEnum
from pathlib import Path
from typing import Any

from airbridge.core.exceptions import ConfigurationError

SECTION = "airbridge"
_CLASSPATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Pattern(str):
    """Name, or pattern of names as `fnmatch` reads it."""

    __slots__ = ()


class Classpath(str):
    """Full path of a class."""

    __slots__ = ()


class Machine(StrEnum):
    """Machine that an environment can be built for, as `platform.machine` names it."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class Sandbox(StrEnum):
    """Permission to run code of DAG authors in the control plane on a host that cannot sandbox it."""

    #: Allowed: the protections that the host supports are used, and a warning names the missing ones.
    AUTO = "auto"
    #: Refused: DAG files are neither parsed nor checked there.
    REQUIRE = "require"


class FourEyes(StrEnum):
    """Operator actions that can require a second person."""

    #: Revocations, their removal, and the revocation of workers and tokens.
    REVOCATION = "revocation"
    POLICY = "policy"
    TOKENS = "tokens"


def read(option: Field[Any], kind: Any, text: str | None) -> Any:
    """Read the value of an option of this kind; its default where `text` is None or empty. Raises `ConfigurationError`."""
    if text is None or not text.strip():
        if option.default is MISSING:
            raise _missing(option)
        return option.default
    value = _PARSERS[kind](option.name, text.strip())
    minimum = option.metadata["minimum"]
    if minimum is not None and value < minimum:
        raise wrong(option.name, text, f"at least {minimum:g}")
    maximum = option.metadata["maximum"]
    if maximum is not None and value > maximum:
        raise wrong(option.name, text, f"at most {maximum:.10g}")
    return value


def _path(name: str, text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise wrong(name, text, "an absolute path")
    return path


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise wrong(name, text, "a number") from error
    if not math.isfinite(value):
        raise wrong(name, text, "a finite number")
    return value


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise wrong(name, text, "a whole number") from error


def _boolean(name: str, text: str) -> bool:
    if text.lower() in {"true", "t", "1", "yes"}:
        return True
    if text.lower() in {"false", "f", "0", "no"}:
        return False
    raise wrong(name, text, "True or False")


def _digests(name: str, text: str) -> tuple[str, ...]:
    digests = tuple(part.strip() for part in text.split(",") if part.strip())
    if not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise wrong(name, text, "image digests, sha256:<64 hexadecimal digits>, separated by commas")
    return digests


def _sandbox(name: str, text: str) -> Sandbox:
    try:
        return Sandbox(text)
    except ValueError as error:
        raise wrong(name, text, " or ".join(repr(str(each)) for each in Sandbox)) from error


def _four_eyes(name: str, text: str) -> tuple[FourEyes, ...]:
    try:
        return tuple(FourEyes(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise wrong(
            name, text, ", ".join(repr(str(each)) for each in FourEyes) + ", separated by commas"
        ) from error


def _machines(name: str, text: str) -> tuple[Machine, ...]:
    try:
        return tuple(Machine(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise wrong(
            name, text, " or ".join(repr(str(each)) for each in Machine) + ", separated by commas"
        ) from error


def _patterns(_: str, text: str) -> tuple[Pattern, ...]:
    return tuple(Pattern(part.strip()) for part in text.split(",") if part.strip())


def _classpaths(name: str, text: str) -> tuple[Classpath, ...]:
    paths = tuple(Classpath(part.strip()) for part in text.split(",") if part.strip())
    if not all(_CLASSPATH.fullmatch(path) for path in paths):
        raise wrong(name, text, "full paths of classes, separated by commas")
    return paths


_PARSERS: dict[Any, Callable[[str, str], Any]] = {
    Path: _path,
    Path | None: _path,
    str: lambda _, text: text,
    str | None: lambda _, text: text,
    float: _number,
    float | None: _number,
    int: _integer,
    bool: _boolean,
    tuple[str, ...] | None: _digests,
    tuple[Pattern, ...] | None: _patterns,
    Sandbox: _sandbox,
    tuple[Machine, ...] | None: _machines,
    tuple[FourEyes, ...] | None: _four_eyes,
    tuple[Classpath, ...] | None: _classpaths,
}


def wrong(name: str, text: str, right: str) -> ConfigurationError:
    """Return the error of an option that has a wrong value."""
    return ConfigurationError(f"[{SECTION}] {name} is {text!r}; it must be {right}")


def _missing(option: Field[Any]) -> ConfigurationError:
    return ConfigurationError(
        f"[{SECTION}] {option.name} is not set; it must be given, for example {option.metadata['example']}. "
        f"{option.metadata['description']}"
    )
