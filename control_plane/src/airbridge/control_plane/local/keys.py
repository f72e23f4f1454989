"""What a state directory keeps from one start to the next: Airflow's keys, the database password, the ports."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airbridge.control_plane.local import ports
from airbridge.executor.exceptions import ConfigurationError


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _secret() -> str:
    return secrets.token_urlsafe(32)


class Keys(BaseModel):
    """Secrets of one local platform, and the ports it had last."""

    model_config = ConfigDict(frozen=True)

    fernet_key: str = Field(default_factory=_fernet_key, repr=False)
    jwt_secret: str = Field(default_factory=_secret, repr=False)
    api_secret_key: str = Field(default_factory=_secret, repr=False)
    database_password: str = Field(default_factory=_secret, repr=False)
    ports: dict[str, int] = Field(default_factory=dict)


def load_or_make(path: Path, port_names: Iterable[str], wanted_ports: dict[str, int]) -> Keys:
    """Read the keys, or make them; choose the ports. The file is for its owner's eyes only."""
    keys = _read(path) if path.exists() else Keys()
    keys = keys.model_copy(update={"ports": ports.choose(port_names, {**keys.ports, **wanted_ports})})
    path.touch(mode=0o600)
    path.write_text(keys.model_dump_json(indent=2))
    return keys


def _read(path: Path) -> Keys:
    try:
        return Keys.model_validate_json(path.read_bytes())
    except ValidationError as error:
        # Not the error's own text: it quotes what it read.
        raise ConfigurationError(
            f"{path} is damaged ({error.error_count()} errors): delete the state directory to start anew"
        ) from None
