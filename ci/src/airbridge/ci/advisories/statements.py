"""Statements about published vulnerabilities, as ci/advisories.toml has them.

The file is the only source of docs/reference/vulnerabilities.md and images/vex/airbridge.openvex.json. Its terms are those of
OpenVEX 0.2.0.
"""

from __future__ import annotations

from datetime import date
from typing import Literal, Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import CheckoutError

FILE = "ci/advisories.toml"

Status = Literal["affected", "not_affected", "fixed"]
Justification = Literal[
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Advisory(_Model):
    """One published vulnerability of a package, and what is stated about the locked version of it."""

    id: str = Field(pattern=r"^(CVE-\d{4}-\d{4,}|GHSA(-[0-9a-z]{4}){3}|PYSEC-\d{4}-\d+)$")
    aliases: tuple[str, ...] = ()
    #: PEP 440 ranges; a version in any of them is affected.
    affected: tuple[str, ...] = Field(min_length=1)
    #: The day of the announcement, or of the record on Apache's site, where one of them was at hand.
    published: date | None = None
    source: str = Field(pattern=r"^https://")
    #: None while nothing is stated: enough for a range that the locked version is outside of.
    status: Status | None = None
    justification: Justification | None = None
    #: What it is, and why the status is what it is.
    impact: str = ""
    #: What AirBridge does about it.
    compensation: str = ""
    #: What an operator does about it.
    action: str = ""
    #: Paths of the tests that show it: "tests/unit/test_x.py::test_y".
    tests: tuple[str, ...] = ()

    @field_validator("affected")
    @classmethod
    def _ranges(cls, ranges: tuple[str, ...]) -> tuple[str, ...]:
        for each in ranges:
            try:
                SpecifierSet(each)
            except InvalidSpecifier as error:
                raise ValueError(f"{each!r} is not a range of versions such as '>=3.0.0,<3.1.1'") from error
        return ranges

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.status == "not_affected") != (self.justification is not None):
            raise ValueError("a justification is for the status not_affected, which needs one")
        if self.status is not None and not self.impact:
            raise ValueError(
                "a statement needs its impact: what the vulnerability is, and why the status holds"
            )
        if self.status == "affected" and not self.action:
            raise ValueError("the status affected needs an action: what an operator does about it")
        if self.justification == "inline_mitigations_already_exist" and not self.compensation:
            raise ValueError("inline_mitigations_already_exist needs the compensation")
        return self

    def concerns(self, version: str) -> bool:
        """Return whether a version is in an affected range."""
        return any(SpecifierSet(each).contains(version, prereleases=True) for each in self.affected)


class PackageAdvisories(_Model):
    """Advisories of one package. `version` is the one that the statements are about."""

    name: str
    version: str
    #: Packages of the same release, under which the same advisories are published.
    also: tuple[str, ...] = ()
    advisory: tuple[Advisory, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names under which the package is locked."""
        return (self.name, *self.also)


class Advisories(_Model):
    """The file."""

    #: The last day whose publications the file covers.
    date: date
    #: The revision of the VEX document; raise it when a statement changes.
    revision: int = Field(ge=1)
    package: tuple[PackageAdvisories, ...]

    @model_validator(mode="after")
    def _once(self) -> Self:
        pairs = [
            (name, each.id) for package in self.package for name in package.names for each in package.advisory
        ]
        if twice := sorted({pair for pair in pairs if pairs.count(pair) > 1}):
            raise ValueError(f"listed twice: {', '.join(f'{name} {id_}' for name, id_ in twice)}")
        return self

    def statements(self) -> list[tuple[PackageAdvisories, Advisory]]:
        """Return all advisories with a status, by package and id."""
        found = [(package, each) for package in self.package for each in package.advisory if each.status]
        return sorted(found, key=lambda pair: (pair[0].name, pair[1].id))

    def accepted(self) -> list[str]:
        """Return the ids that a scanner may ignore: all statements but those of a fixed version."""
        return sorted({each.id for _, each in self.statements() if each.status != "fixed"})


def load(checkout: Checkout) -> Advisories:
    """Read the file. Raises CheckoutError with the place and the reason of what is wrong in it."""
    try:
        return Advisories.model_validate(checkout.source(FILE).toml)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckoutError(f"{FILE}: {place}: {first['msg']}") from error
