"""``airbridge ca`` and ``airbridge keys``: the control plane's keys, made anew without a restart.

They change files of the secrets directory; gateways and schedulers that read it follow within seconds.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import arguments, connection, output
from airbridge.control_plane.cli.arguments import Json
from airbridge.control_plane.cli.connection import CaFile, TokenFile, Url
from airbridge.control_plane.local.layout import StateDir
from airbridge.executor.exceptions import ConfigurationError

ALIVE_SECONDS = 90.0
SecretsDir = Annotated[
    Path | None,
    typer.Option(
        "--secrets-dir",
        envvar="AIRBRIDGE_SECRETS_DIR",
        help="The control plane's secrets directory.",
        show_default="the local platform's",
        resolve_path=True,
    ),
]
RootDir = Annotated[
    Path | None,
    typer.Option(
        help="Where the root's root.crt and root.key are, for as long as this takes.",
        show_default="offline-root in the secrets directory",
        resolve_path=True,
    ),
]
TrustDomain = Annotated[str, typer.Option(help="The SPIFFE trust domain.", envvar="AIRBRIDGE_TRUST_DOMAIN")]
Force = Annotated[
    bool, typer.Option("--force", help="Do not ask the gateway whether every live worker is ready.")
]
Wait = Annotated[
    float, typer.Option(min=0, help="Seconds to wait until every live worker has the trust bundle of now.")
]
StateDirectory = arguments.Directory
POLL_SECONDS = 1.0
DEFAULT_TRUST_DOMAIN = "airbridge.local"


def build_ca() -> typer.Typer:
    """Return the command group ``ca``."""
    group = typer.Typer(
        help="The two tiers of the CA: roots, and the issuing CA.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command(epilog="Example: airbridge ca show --secrets-dir /etc/airbridge/secrets")(show)
    group.command(
        epilog="Example: airbridge ca rotate --root-dir /media/usb/root --trust-domain example.com"
    )(rotate)
    group.command(epilog="Example: airbridge ca new-root /media/usb/root-2 --trust-domain example.com")(
        new_root
    )
    group.command(epilog="Example: airbridge ca drop-root 5b0c9e1a7b3d4c60")(drop_root)
    return group


def build_keys() -> typer.Typer:
    """Return the command group ``keys``."""
    group = typer.Typer(
        help="The keys of work items and of access tokens.", no_args_is_help=True, rich_markup_mode="rich"
    )
    group.command("stage-signing", epilog="Example: airbridge keys stage-signing")(stage_signing)
    group.command("activate-signing", epilog="Example: airbridge keys activate-signing")(activate_signing)
    group.command("retire-signing", epilog="Example: airbridge keys retire-signing")(retire_signing)
    group.command("rotate-token", epilog="Example: airbridge keys rotate-token")(rotate_token)
    group.command("retire-token", epilog="Example: airbridge keys retire-token")(retire_token)
    return group


def show(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Show the issuing CA and the roots, by their key ids."""
    from airbridge.control_plane.identity import rotation
    from airbridge.control_plane.identity.ca import key_id

    found = rotation.certificates(_secrets(secrets_dir, directory))
    rows = [("issuing", found.issuing), *(("before", each) for each in found.others)]
    rows += [("root", each) for each in found.roots]
    shown = [
        {"kind": kind, "key_id": key_id(each), "until": each.not_valid_after_utc.isoformat()}
        for kind, each in rows
    ]
    if json:
        output.emit_json(shown)
    else:
        output.results().print(
            output.table(None, ("kind", "key id", "until"), [tuple(each.values()) for each in shown])
        )


def rotate(  # noqa: PLR0917 - typer fills them by name
    root_dir: RootDir = None,
    trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN,
    secrets_dir: SecretsDir = None,
    force: Force = False,
    wait: Wait = 0.0,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Make a new issuing CA. Workers are told to renew by their next heartbeat; nothing is interrupted."""
    from airbridge.control_plane.identity import rotation, secrets

    path = _secrets(secrets_dir, directory)
    root = secrets.load_root(root_dir or path / secrets.ROOT_DIRECTORY)
    _ready(force, wait, path, directory, (url, token_file, ca_file))
    before = rotation.certificates(path).issuing
    ca = rotation.rotate_issuing_ca(path, root, trust_domain, datetime.now(UTC))
    from airbridge.control_plane.identity.ca import key_id

    _tell(
        json,
        issuing_ca=ca.key_id,
        before=key_id(before),
        next=f"airbridge revocation add issuer {key_id(before)}",
    )


def new_root(
    new_root_dir: Annotated[
        Path, typer.Argument(help="Where to make it; take it offline afterwards.", resolve_path=True)
    ],
    trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN,
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Make another root and trust it. Workers learn of it by heartbeat; then 'airbridge ca rotate' under it."""
    from airbridge.control_plane.identity import rotation, secrets

    path = _secrets(secrets_dir, directory)
    root = secrets.create_root(new_root_dir, trust_domain, datetime.now(UTC))
    rotation.add_root(path, root.certificate)
    _tell(json, root=root.key_id, next=f"airbridge ca rotate --root-dir {new_root_dir}")


def drop_root(
    identifier: Annotated[
        str, typer.Argument(metavar="KEY_ID", help="The root's key id, as 'airbridge ca show' has it.")
    ],
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Trust a root no more. Give workers' ca_file the new ca.crt first: those that restart read it."""
    from airbridge.control_plane.identity import rotation

    rotation.drop_root(_secrets(secrets_dir, directory), identifier)
    _tell(json, dropped=identifier)


def stage_signing(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Make the next key for work items and let workers know it, by heartbeat."""
    from airbridge.control_plane.identity import rotation

    key = rotation.stage_signing_key(_secrets(secrets_dir, directory))
    _tell(json, staged=key.kid, next="airbridge keys activate-signing")


def activate_signing(  # noqa: PLR0917 - typer fills them by name
    secrets_dir: SecretsDir = None,
    force: Force = False,
    wait: Wait = 0.0,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Sign work items with the staged key. Refused while a live worker does not know it yet."""
    from airbridge.control_plane.identity import rotation

    path = _secrets(secrets_dir, directory)
    _ready(force, wait, path, directory, (url, token_file, ca_file))
    _tell(
        json,
        signing=rotation.activate_signing_key(path).kid,
        next="airbridge keys retire-signing, after message_ttl",
    )


def retire_signing(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Forget the keys of before. After [airbridge] message_ttl seconds no message is under them any more."""
    from airbridge.control_plane.identity import rotation

    gone = rotation.retire_signing_keys(_secrets(secrets_dir, directory))
    _tell(json, retired=[key.kid for key in gone])


def rotate_token(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Mint workers' access tokens with a new key. Holders of older ones are told to renew by their next heartbeat."""
    from airbridge.control_plane.identity import rotation

    key = rotation.rotate_token_key(_secrets(secrets_dir, directory))
    _tell(json, token_key=key.kid, next="airbridge keys retire-token, when workers have renewed")


def retire_token(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Accept access tokens by the key in use only."""
    from airbridge.control_plane.identity import rotation

    gone = rotation.retire_token_keys(_secrets(secrets_dir, directory))
    _tell(json, retired=[key.kid for key in gone])


def _secrets(given: Path | None, directory: Path) -> Path:
    return given if given is not None else StateDir(directory).secrets


def _ready(
    force: bool,
    wait: float,
    secrets_dir: Path,
    directory: Path,
    gateway: tuple[str | None, Path | None, Path | None],
) -> None:
    """Raise `ConfigurationError` unless every live worker goes by the trust bundle of these files."""
    if force:
        return
    from airbridge.control_plane.identity.keyring import Keyring

    wanted = Keyring.load(secrets_dir).keys.trust.version
    deadline = time.monotonic() + wait
    with connection.client(directory, *gateway) as client:
        while behind := _behind(client.get("workers")["workers"], wanted):
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"these workers do not have trust bundle {wanted} yet: {', '.join(behind)}; they get it with "
                    "their next heartbeat: give --wait 60, or --force to leave them behind"
                )
            time.sleep(POLL_SECONDS)


def _behind(workers: list[dict[str, Any]], wanted: str) -> list[str]:
    return sorted(each["id"] for each in workers if _alive(each) and each["trust_version"] != wanted)


def _alive(worker: dict[str, Any]) -> bool:
    seen = worker["last_heartbeat_at"]
    if seen is None or worker["wanted"] == "revoked":
        return False
    return (datetime.now(UTC) - datetime.fromisoformat(seen)).total_seconds() < ALIVE_SECONDS


def _tell(json: bool, **found: Any) -> None:
    if json:
        output.emit_json(found)
        return
    for name, value in found.items():
        if name == "next":
            output.messages().print(f"Next: {value}", markup=False, soft_wrap=True)
        else:
            shown = ", ".join(value) or "none" if isinstance(value, list) else value
            output.emit_text(f"{name.replace('_', ' ')}: {shown}")
