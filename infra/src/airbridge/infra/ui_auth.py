"""Sign-in to Airflow's UI: table `[control_plane.auth]` of an environment file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

OIDC_MANAGER = "airbridge.control_plane.sign_in.auth_manager.OidcAuthManager"
#: Secret of the client, of a deployment that has one.
CLIENT_SECRET = "oidc-client-secret"  # noqa: S105 - a name
RULES_FILE = "ui-oidc.toml"
SECRET_FILE = "ui-oidc.secret"  # noqa: S105 - a name


def _require_installed(manager: str) -> str:
    if manager.startswith("airflow.providers.fab."):
        raise ValueError(
            "the FAB provider is not in the control plane's image: every release of it requires Flask below 2.3, the lock has "
            f"3.1.3 or newer for published vulnerabilities. Use {OIDC_MANAGER}, or a class of an image of your own"
        )
    return manager


class Auth(BaseModel):
    """Sign-in to Airflow's UI; required in every tier but `local`. Without `manager`: OpenID Connect, whose users need `roles`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[
        str,
        Field(
            pattern=r"^https://[a-z0-9][a-z0-9.-]*[a-z0-9](:\d+)?(/[\w.-]+)*$",
            description="address under which users open the UI; the issuer sends them back to `<url>/auth/callback`",
        ),
    ]
    manager: Annotated[
        str,
        AfterValidator(_require_installed),
        Field(
            pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
            description="class of the auth manager; the settings of another one are options under `[control_plane.airflow]`",
        ),
    ] = OIDC_MANAGER
    issuer: Annotated[
        str | None,
        Field(
            pattern=r"^https://[^\s?#@]+$", description="OpenID Connect issuer, exactly as it names itself"
        ),
    ] = None
    client_id: Annotated[str | None, Field(min_length=1, description="client id at the issuer")] = None
    client_secret: bool = Field(
        default=False,
        description="the client has a secret: Secrets Manager keeps it as `oidc-client-secret`, under the environment's prefix",
    )
    scope: Annotated[str, Field(description="OAuth scope that is requested")] = "openid"
    owner_claim: Annotated[
        Literal["sub", "email"], Field(description="claim that names the user: `sub`, or a verified `email`")
    ] = "sub"
    groups_claim: Annotated[str, Field(min_length=1, description="claim with the user's groups")] = "groups"
    session_minutes: Annotated[int, Field(ge=1, le=720, description="lifetime of a session")] = 480
    roles: dict[str, Literal["viewer", "user", "op", "admin"]] = Field(
        default={},
        description="group to role in Airflow: `viewer`, `user`, `op` or `admin`; the highest counts, nobody without one signs in",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        own = {"issuer": self.issuer, "client_id": self.client_id, "roles": self.roles}
        missing = [name for name, value in own.items() if not value]
        if self.is_oidc and missing:
            raise ValueError(f"{OIDC_MANAGER.rpartition('.')[2]} needs {', '.join(missing)}")
        given = [name for name, value in own.items() if value]
        if not self.is_oidc and given:
            raise ValueError(
                f"{', '.join(given)} are settings of {OIDC_MANAGER}; those of {self.manager} are options under [control_plane.airflow]"
            )
        return self

    @property
    def is_oidc(self) -> bool:
        """Return whether AirBridge's own auth manager is used."""
        return self.manager == OIDC_MANAGER

    def rules(self, directory: str) -> str | None:
        """Return the manager's file of rules, which with the secret lies in `directory`; None for another manager."""
        return "\n".join(self._lines(directory)) + "\n" if self.is_oidc else None

    def _lines(self, directory: str) -> Iterator[str]:
        values = {
            "issuer": self.issuer,
            "audience": self.client_id,
            "scope": self.scope,
            "owner_claim": self.owner_claim,
            "session_minutes": self.session_minutes,
            **({"client_secret_file": f"{directory}/{SECRET_FILE}"} if self.client_secret else {}),
        }
        # A JSON string or number is also a TOML one.
        yield from (f"{name} = {json.dumps(value)}" for name, value in values.items())
        for group, role in sorted(self.roles.items()):
            yield "[[role]]"
            yield from (
                f"{name} = {json.dumps(value)}"
                for name, value in (("claim", self.groups_claim), ("value", group), ("role", role))
            )
