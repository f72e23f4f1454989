"""Registry of facts, of the places that state them, and of text that only looks like one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import CiError

FILE = "ci/inventory.toml"

#: `<kind>` in a pattern stands for a value of this form, and is what is compared.
FORMS = {
    "version": r"\d+[0-9A-Za-z]*(?:\.[0-9A-Za-z*]+)*(?:[-+~][0-9A-Za-z.+~]*[0-9A-Za-z])?",
    "dotted": r"\d+(?:\.[0-9A-Za-z*]+)+(?:[-+~][0-9A-Za-z.+~]*[0-9A-Za-z])?",
    "range": r"[^\"'`\s\]]*(?: *, *[^\"'`\s\]]+)*",
    "digest": r"[0-9A-Za-z]*",
    "account": r"[0-9A-Za-z.]+",
    "word": r"[\w.@:/+-]+",
    "text": r"[^\"\n]*",
    "line": r".*",
}
_FORM = re.compile(r"<(" + "|".join(FORMS) + r")>")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Located(_Model):
    """Something that is looked for in the files that `within` names: globs, of which those with a "!" exclude."""

    within: Annotated[tuple[str, ...], Field(alias="in", min_length=1)]

    def covers(self, path: str) -> bool:
        """Return whether the path is one of those named."""
        excluded = any(glob(each[1:]).fullmatch(path) for each in self.within if each.startswith("!"))
        return not excluded and any(
            glob(each).fullmatch(path) for each in self.within if not each.startswith("!")
        )

    @property
    def file(self) -> str | None:
        """The one file, where that is what is named."""
        [first, *others] = self.within
        return None if others or "*" in first or first.startswith("!") else first


class Place(_Located):
    """A statement of a fact: `pattern` with one `<form>`, whose text must be `equals` (`{fact}` is filled in)."""

    pattern: str
    equals: tuple[str, ...] | str
    #: How often the file states it; None for any number, in a file that may also be silent.
    times: int | None = None

    @cached_property
    def expression(self) -> re.Pattern[str]:
        """The pattern, its form as the group `value`."""
        return re.compile(
            _FORM.sub(lambda found: f"(?P<value>{FORMS[found[1]]})", self.pattern), re.MULTILINE
        )

    @property
    def form(self) -> str:
        """Kind of value."""
        found = _FORM.search(self.pattern)
        return found[1] if found else ""

    @model_validator(mode="after")
    def _one_form(self) -> Place:
        if len(_FORM.findall(self.pattern)) != 1:
            raise ValueError(
                f"pattern {self.pattern!r} must have one of {', '.join(FORMS)} in angle brackets"
            )
        return self


class Held(_Located):
    """Text that another check of parity compares with its source."""

    pattern: str
    by: str

    @cached_property
    def expression(self) -> re.Pattern[str]:
        """The pattern."""
        return re.compile(self.pattern, re.MULTILINE)


class Foreign(_Located):
    """Text that is no fact of ours, with the reason. Without a pattern: the whole file."""

    pattern: str | None = None
    reason: Annotated[str, Field(min_length=10)]

    @cached_property
    def expression(self) -> re.Pattern[str] | None:
        """The pattern."""
        return re.compile(self.pattern, re.MULTILINE) if self.pattern else None


class Lines(_Located):
    """Lines that a file must have, each as often as it is listed here: the checks that a pipeline or a target runs."""

    lines: Annotated[tuple[str, ...], Field(min_length=1)]
    #: Where one of them would be if it were gone: what to do about it.
    why: str


class Action(_Model):
    """A GitHub action: the version that its comment names, and the commit of that version."""

    version: Annotated[str, Field(pattern=r"^v\d+(\.\d+)*$")]
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class Policy(_Model):
    """The least that the environments of a tier must meet."""

    #: Beginnings of the bases that a release may stand on.
    bases: Annotated[tuple[str, ...], Field(min_length=1)]
    soak_minutes: float
    watch_minutes: float
    error_budget: float
    canary: bool
    persons: int
    every_architecture: bool


Fact = str | int | tuple[str, ...]


class Registry(_Model):
    """The whole file."""

    fact: dict[str, Fact]
    place: tuple[Place, ...]
    held: tuple[Held, ...] = ()
    foreign: tuple[Foreign, ...]
    lines: tuple[Lines, ...]
    action: dict[str, Action]
    policy: dict[str, Policy]
    #: SHA-256 of files that are made by a tool and hold digests that no other file states.
    seal: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]

    def allowed(self, place: Place) -> tuple[str, ...]:
        """The values that a place may state."""
        templates = (place.equals,) if isinstance(place.equals, str) else place.equals
        found: list[str] = []
        for template in templates:
            name = template[1:-1]
            whole = template.startswith("{") and name in self.fact
            value = self.fact[name] if whole else template.format_map(self._texts)
            found += value if isinstance(value, tuple) else [str(value)]
        return tuple(found)

    @cached_property
    def _texts(self) -> Mapping[str, Fact]:
        return dict(self.fact)


def load(checkout: Checkout) -> Registry:
    """The checkout's registry; CiError as in `parse`."""
    return parse(checkout.source(FILE).text)


@lru_cache(maxsize=4)
def parse(text: str) -> Registry:
    """The registry in `text`; CiError names every wrong key."""
    try:
        return Registry.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise CiError(f"{FILE}: {error}") from error
    except ValidationError as error:
        problems = [f"{FILE}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise CiError("\n".join(problems)) from error


@lru_cache(maxsize=1024)
def glob(pattern: str) -> re.Pattern[str]:
    """A glob over paths: `**` is any number of folders, `*` anything within one name."""
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    known = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*"}
    return re.compile("".join(known.get(part) or re.escape(part) for part in parts))
