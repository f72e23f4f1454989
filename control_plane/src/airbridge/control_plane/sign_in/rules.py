"""Rules of sign-in: the issuer that is trusted, and what its groups get.

Operators get scopes (``[airbridge] oidc_file``), users of Airflow's UI a role (``[airbridge] ui_oidc_file``).
"""

from __future__ import annotations

import ipaddress
import tomllib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from airbridge.control_plane.exceptions import InvalidScope
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.core.exceptions import ConfigurationError

_HIGHEST_FIRST: Final[tuple[str, ...]] = ("admin", "op", "user", "viewer")
_NAME: Final = Field(min_length=1, max_length=250)


def _secure(url: str) -> str:
    """Return the URL of an issuer. Keys that can be replaced on the way would verify nothing."""
    parts = urlsplit(url)
    trusted = parts.scheme == "https" or (parts.scheme == "http" and _on_loopback(parts.hostname or ""))
    if trusted and parts.hostname and not (parts.username or parts.query or parts.fragment):
        return url
    raise ValueError(f"{url!r} must be an https URL without user, query and fragment (http on loopback only)")


def _on_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


SecureUrl = Annotated[str, Field(max_length=2_000), AfterValidator(_secure)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Group(_Table):
    """Users whose claim has a value."""

    claim: Annotated[str, _NAME] = "groups"
    value: Annotated[str, _NAME]

    def is_of(self, claims: Mapping[str, Any]) -> bool:
        """Return whether these claims have the value: as a text, or in a list."""
        found = claims.get(self.claim)
        return (
            found == self.value if isinstance(found, str) else isinstance(found, list) and self.value in found
        )


class Role(_Group):
    """Scopes of all users whose claim has a value."""

    scopes: tuple[str, ...] = Field(min_length=1, max_length=50)

    @field_validator("scopes")
    @classmethod
    def _readable(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        try:
            Scopes.parse(scopes)
        except InvalidScope as error:
            raise ValueError(str(error)) from error
        return scopes


class UiRole(_Group):
    """Role in Airflow's UI of all users whose claim has a value."""

    role: Literal["viewer", "user", "op", "admin"]


class IssuerRules(_Table):
    """Issuer that is trusted, and how its ID tokens are read."""

    #: Option of ``[airbridge]`` that names the file.
    OPTION: ClassVar[str]

    issuer: SecureUrl
    #: The ``aud`` that ID tokens must have: the client id that operators sign in with.
    audience: Annotated[str, _NAME]
    #: Unset: from the issuer's discovery document.
    jwks_url: SecureUrl | None = None
    #: PEM file of the CAs of the issuer's server. Unset: the public ones.
    ca_file: Path | None = None
    session_minutes: float = Field(default=60.0, ge=1.0, le=720.0)
    #: Claim that names the owner of a session.
    owner_claim: Literal["sub", "email"] = "sub"
    require_nonce: bool = False
    #: OAuth scope that `airbridge login` requests.
    scope: Annotated[str, _NAME] = "openid"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file. Raises `ConfigurationError` naming what is wrong with it."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(
                f"[airbridge] {cls.OPTION} {path}: {error}; it must be a TOML file"
            ) from error
        except ValidationError as error:
            faults = "; ".join(_faults(error))
            raise ConfigurationError(f"[airbridge] {cls.OPTION} {path}: {faults}") from error

    @property
    def option(self) -> str:
        """Option of ``[airbridge]`` that names the file."""
        return self.OPTION

    @abstractmethod
    def scopes_of(self, claims: Mapping[str, Any]) -> list[str]:
        """Return what a user with these claims gets; empty if sign-in is refused."""


class SignInRules(IssuerRules):
    """Scopes of operators by their groups. A user without any of the roles is refused."""

    OPTION: ClassVar[str] = "oidc_file"

    roles: tuple[Role, ...] = Field(alias="role", min_length=1, max_length=200)

    def scopes_of(self, claims: Mapping[str, Any]) -> list[str]:
        """Return the scopes of every role that these claims have, each once."""
        found = (scope for role in self.roles if role.is_of(claims) for scope in role.scopes)
        return list(dict.fromkeys(found))


class UiRules(IssuerRules):
    """Roles of users of Airflow's UI by their groups. A user without any of them is refused."""

    OPTION: ClassVar[str] = "ui_oidc_file"

    #: The flow in a browser always has one: it binds the ID token to the browser that asked for it.
    require_nonce: bool = True
    #: File with the client's secret. Unset: a public client, which PKCE alone protects.
    client_secret_file: Path | None = None
    roles: tuple[UiRole, ...] = Field(alias="role", min_length=1, max_length=200)

    def scopes_of(self, claims: Mapping[str, Any]) -> list[str]:
        """Return the highest role that these claims have, alone in a list."""
        found: set[str] = {each.role for each in self.roles if each.is_of(claims)}
        return [role for role in _HIGHEST_FIRST if role in found][:1]


def _faults(error: ValidationError) -> Iterator[str]:
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        yield f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}"
