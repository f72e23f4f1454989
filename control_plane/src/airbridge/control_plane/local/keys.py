"""Persistent secrets of a state directory: Airflow's keys, the database password; and the ports."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airbridge.control_plane.local import ports
from airbridge.control_plane.local.layout import replace_text
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.service_secrets import Service


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _secret() -> str:
    return secrets.token_urlsafe(32)


def _passwords() -> dict[Service, str]:
    return {service: _secret() for service in Service}


class Keys(BaseModel):
    """Secrets of one local platform, and its last ports."""

    model_config = ConfigDict(frozen=True)

    fernet_key: str = Field(default_factory=_fernet_key, repr=False)
    jwt_secret: str = Field(default_factory=_secret, repr=False)
    api_secret_key: str = Field(default_factory=_secret, repr=False)
    #: Password of the database's owner: migrations and the command line use it.
    database_password: str = Field(default_factory=_secret, repr=False)
    #: Password of each service's own role in the database.
    service_passwords: dict[Service, str] = Field(default_factory=_passwords, repr=False)
    ports: dict[str, int] = Field(default_factory=dict)


def load_or_make(path: Path, port_names: Iterable[str], wanted_ports: dict[str, int]) -> Keys:
    """Read the keys, or create them; choose the ports. The file is readable only by its owner."""
    keys = _read(path) if path.exists() else Keys()
    keys = keys.model_copy(update={"ports": ports.choose(port_names, {**keys.ports, **wanted_ports})})
    text = keys.model_dump_json(indent=2)
    if not path.exists() or path.read_text() != text:
        replace_text(path, text)
    return keys


def _read(path: Path) -> Keys:
    try:
        return Keys.model_validate_json(path.read_bytes())
    except ValidationError as error:
        # Without the error's text, which quotes the file's secrets.
        raise ConfigurationError(
            f"{path} is damaged ({error.error_count()} errors): delete the state directory to start again"
        ) from None
