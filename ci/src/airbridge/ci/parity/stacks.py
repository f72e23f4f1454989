"""Synthesised stacks, and the code that makes them, name no image but their environment's, by digest."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airbridge.ci.checkout import Source
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.release import pins

OUT = "infra/cdktf.out"
CODE = "infra/src"
_REFERENCE = re.compile(
    r"(?P<registry>[\w.-]+\.dkr\.ecr\.[\w-]+\.amazonaws\.com)/airbridge-(?P<environment>[a-z0-9]+)/(?P<image>[a-z-]+)"
    r"(?P<rest>[:@][\w:.-]+)"
)
_HAND_TYPED = re.compile(
    r"sha256:[0-9a-f]{64}|amazonaws\.com/[\w./-]+:[\w.-]+|\b(?:docker\.io|ghcr\.io|quay\.io|public\.ecr\.aws)/[\w./-]+|:latest\b"
)
_IMAGE_KEY = re.compile(r'\\?"image\\?":\s*\\?"(?P<image>[^"\\]+)')


@dataclass(frozen=True)
class Location:
    """A line of a file."""

    source: Source
    line: int


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in the stacks' code."""
    for path in facts.checkout.glob(f"{CODE}/**/*.py"):
        yield from _code(facts.checkout.source(path))


def check_synthesised(facts: Facts) -> Iterator[Finding]:
    """All findings in infra/cdktf.out, where it is there."""
    for path in facts.checkout.glob(f"{OUT}/**/cdk.tf.json"):
        yield from _stack(facts, facts.checkout.source(path))


def _code(source: Source) -> Iterator[Finding]:
    for number, line in enumerate(source.lines, start=1):
        if (found := _HAND_TYPED.search(line)) and "{" not in found[0]:
            expected = f"images come from {pins.FOLDER} alone"
            yield Finding(source.path, number, "hand-typed-image", f"names {found[0][:60]}", expected)


def _stack(facts: Facts, source: Source) -> Iterator[Finding]:
    seen: set[tuple[str, str, str]] = set()
    for text, where in _texts(source):
        for found in _REFERENCE.finditer(text):
            key = (found["environment"], found["image"], found["rest"])
            if key not in seen:
                seen.add(key)
                yield from _reference(facts, Location(source, where), key)
    yield from _elsewhere(facts, source)


def _reference(facts: Facts, place: Location, key: tuple[str, str, str]) -> Iterator[Finding]:
    environment, image, rest = key
    source, line = place.source, place.line
    if not rest.startswith("@sha256:"):
        yield Finding(source.path, line, "stack-image", f"names {image}{rest}", "must name it by digest")
        return
    path = pins.toml_path(environment)
    if not facts.checkout.has(path):
        yield Finding(
            source.path, line, "stack-environment", f"is of environment {environment}", f"there is no {path}"
        )
        return
    pinned = pins.load(facts.checkout, environment).digest_of(image)
    if rest.removeprefix("@") != pinned:
        actual, expected = (
            f"names {image}{rest[:20]}…",
            f"{path} has {pinned[:19] or 'no such image'}…; run `make synth`",
        )
        yield Finding(source.path, line, "stack-image", actual, expected)


def _elsewhere(facts: Facts, source: Source) -> Iterator[Finding]:
    """Container images that are not the platform's own at all."""
    for number, line in enumerate(source.lines, start=1):
        for found in _IMAGE_KEY.finditer(line):
            image = found["image"]
            if not (_REFERENCE.search(image) or "${" in image or image in _pinned(facts)):
                yield Finding(
                    source.path,
                    number,
                    "stack-image",
                    f"names {image[:80]}",
                    "must be an image of the release",
                )


def _pinned(facts: Facts) -> set[str]:
    """Every digest that some environment pins: a stack may name it alone, to see when it changes."""
    found = [
        pins.load(facts.checkout, Path(path).stem) for path in facts.checkout.glob(f"{pins.FOLDER}/*.toml")
    ]
    return {reference.digest for pinned in found for reference in pinned.references()}


def _texts(source: Source) -> Iterator[tuple[str, int]]:
    """The file's lines, and what is packed into it as base64 (an instance's boot script), each with a line."""
    for number, line in enumerate(source.lines, start=1):
        yield line, number
    for key, value in _pairs(json.loads(source.text)):
        if key == "user_data" and isinstance(value, str):
            try:
                unpacked = base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                continue
            yield unpacked, source.line(re.escape(value[:60]))


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)
