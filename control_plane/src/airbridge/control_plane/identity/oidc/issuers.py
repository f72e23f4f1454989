"""Issuers whose tokens admit workers (``[airbridge] join_issuers_file``): their keys, and what their claims admit to.

Read from TOML. Rules name regions and pools of the catalogue; a token is good for the pools alone whose rules it meets.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from airbridge.control_plane.sign_in.rules import SecureUrl
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import Name
from airbridge.core.regions import DEFAULT_POOL

OPTION: Final = "join_issuers_file"
_TEXT: Final = Field(min_length=1, max_length=500)
Value = str | bool | int | tuple[str, ...]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClaimsRule(_Table):
    """Admits the holders of tokens with these claims to a pool."""

    region: Name
    pool: Name = DEFAULT_POOL
    #: Each claim must have this value, or one of these; a claim that is a list must contain one.
    claims: dict[str, Value] = Field(min_length=1, max_length=50)
    #: Claim whose value the worker's name must be, or end with after a hyphen. Unset: any name that is free.
    worker_claim: Annotated[str, _TEXT] | None = None

    @field_validator("claims")
    @classmethod
    def _say_something(cls, claims: dict[str, Value]) -> dict[str, Value]:
        for name, value in claims.items():
            if value in {"", ()}:
                raise ValueError(f"claim {name!r} must have a value that tokens may have")
        if claims.keys() <= {"iss", "aud"}:
            raise ValueError(
                "iss and aud alone admit everybody whom the issuer knows; add a claim such as sub"
            )
        return claims

    def admits(self, claims: Mapping[str, Any]) -> bool:
        """Return whether a verified token meets the rule."""
        return all(_has(claims.get(name), wanted) for name, wanted in self.claims.items())

    def name_of(self, claims: Mapping[str, Any]) -> str | None:
        """Return the name that the token gives its worker; None if it gives none. Raises `ValueError` if it should."""
        if self.worker_claim is None:
            return None
        value = claims.get(self.worker_claim)
        if not isinstance(value, str) or not value:
            raise ValueError(f"it has no claim {self.worker_claim!r}, which names the worker")
        return value


class ServiceAccountRule(_Table):
    """Admits the pods of a service account to a pool. A pod joins under its own name."""

    region: Name
    pool: Name = DEFAULT_POOL
    namespace: Annotated[str, _TEXT]
    service_account: Annotated[str, _TEXT]

    def admits(self, claims: Mapping[str, Any]) -> bool:
        """Return whether a verified token is of a pod of the service account."""
        bound = claims.get("kubernetes.io")
        if not isinstance(bound, dict):
            return False
        return (
            bound.get("namespace") == self.namespace
            and _field(bound, "serviceaccount") == self.service_account
            and claims.get("sub") == f"system:serviceaccount:{self.namespace}:{self.service_account}"
        )

    def name_of(self, claims: Mapping[str, Any]) -> str:
        """Return the pod's name. Raises `ValueError` if the token is bound to none."""
        pod = _field(claims["kubernetes.io"], "pod")
        if pod is None:
            raise ValueError("it is bound to no pod; mount a projected token (serviceAccountToken)")
        return pod


class _Issuer(_Table):
    name: Name
    issuer: SecureUrl
    #: The one ``aud`` that tokens must have: a name of this deployment, so that tokens for others are none for it.
    audience: Annotated[str, _TEXT]
    jwks_url: SecureUrl | None = None
    #: File with the keys, read again when it changes; for an issuer that the gateway does not reach.
    jwks_file: Path | None = None
    ca_file: Path | None = None
    #: Longest lifetime of a token.
    max_token_minutes: float = Field(default=70.0, ge=1.0, le=1440.0)

    option: ClassVar[str] = OPTION

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.jwks_url is not None and self.jwks_file is not None:
            raise ValueError("jwks_url and jwks_file cannot both be set")
        return self


class OidcIssuer(_Issuer):
    """An issuer of OpenID Connect, such as a CI or a cloud."""

    method: Literal["oidc"]
    rules: tuple[ClaimsRule, ...] = Field(alias="rule", min_length=1, max_length=200)


class KubernetesIssuer(_Issuer):
    """A Kubernetes cluster."""

    method: Literal["kubernetes"]
    #: As the cluster's tokens name it.
    issuer: SecureUrl = "https://kubernetes.default.svc.cluster.local"
    rules: tuple[ServiceAccountRule, ...] = Field(alias="rule", min_length=1, max_length=200)


JoinIssuer = OidcIssuer | KubernetesIssuer
Rule = ClaimsRule | ServiceAccountRule


class JoinIssuers(_Table):
    """All issuers."""

    issuers: tuple[Annotated[JoinIssuer, Field(discriminator="method")], ...] = Field(
        default=(), alias="issuer", max_length=100
    )

    @classmethod
    def read(cls, path: Path, catalogue: Catalogue) -> Self:
        """Read the file. Raises `ConfigurationError` naming what is wrong with it."""
        try:
            read = cls.model_validate(tomllib.loads(path.read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(
                f"[airbridge] {OPTION} {path}: {error}; it must be a TOML file"
            ) from error
        except ValidationError as error:
            raise ConfigurationError(f"[airbridge] {OPTION} {path}: {'; '.join(_faults(error))}") from error
        for problem in read.problems(catalogue):
            raise ConfigurationError(f"[airbridge] {OPTION} {path}: {problem}")
        return read

    def problems(self, catalogue: Catalogue) -> Iterator[str]:
        """Yield what is wrong between entries that are right by themselves."""
        for name, count in Counter(each.name for each in self.issuers).items():
            if count > 1:
                yield f"issuer {name!r} is there twice; names must differ"
        for each in self.issuers:
            for rule in each.rules:
                if problem := catalogue.lacks(rule.region, rule.pool):
                    yield f"issuer {each.name!r}: {problem}"
        places = Counter(
            (each.method, each.issuer, *place)
            for each in self.issuers
            for place in {(rule.region, rule.pool) for rule in each.rules}
        )
        for (_, url, region, pool), count in places.items():
            if count > 1:
                yield (
                    f"{count} issuers {url} have rules for pool {pool}@{region}: the pool decides which one's keys verify a token; "
                    "give clusters that name themselves alike pools of their own"
                )

    def find(self, method: str, url: str, region: str, pool: str) -> JoinIssuer | None:
        """Return the issuer whose tokens may admit to a pool."""
        for each in self.issuers:
            if (each.method, each.issuer) == (method, url) and any(
                (rule.region, rule.pool) == (region, pool) for rule in each.rules
            ):
                return each
        return None


def _has(found: Any, wanted: Value) -> bool:
    """Return whether a claim has the wanted value. Types must agree: the text "true" is not true."""
    if isinstance(wanted, tuple):
        return any(_has(found, each) for each in wanted)
    if isinstance(found, list):
        return any(type(each) is type(wanted) and each == wanted for each in found)
    return type(found) is type(wanted) and found == wanted


def _field(bound: Mapping[str, Any], kind: str) -> str | None:
    named = bound.get(kind)
    name = named.get("name") if isinstance(named, dict) else None
    return name if isinstance(name, str) and name else None


def _faults(error: ValidationError) -> Iterator[str]:
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        yield f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}"
