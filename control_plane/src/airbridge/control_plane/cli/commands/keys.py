"""``airbridge ca`` and ``airbridge keys``: rotate the control plane's keys without a restart.

The commands change files of the secrets directory; gateways and schedulers reload them within seconds.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import arguments, connection, output
from airbridge.control_plane.cli.arguments import Json
from airbridge.control_plane.local.layout import StateDir
from airbridge.core.exceptions import ConfigurationError

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
        help="Directory that holds root.crt and root.key; needed only while this command runs.",
        show_default="offline-root in the secrets directory",
        resolve_path=True,
    ),
]
TrustDomain = Annotated[str, typer.Option(help="The SPIFFE trust domain.", envvar="AIRBRIDGE_TRUST_DOMAIN")]
Force = Annotated[
    bool, typer.Option("--force", help="Do not check with the gateway that every live worker is ready.")
]
Wait = Annotated[
    float, typer.Option(min=0, help="Seconds to wait until every live worker has the current trust bundle.")
]
StateDirectory = arguments.Directory
POLL_SECONDS = 1.0
DEFAULT_TRUST_DOMAIN = "airbridge.local"


def build_ca() -> typer.Typer:
    """Return the command group ``ca``."""
    group = typer.Typer(
        help="Manage the root CAs and the issuing CA.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command(epilog="Example: airbridge ca show --secrets-dir /etc/airbridge/secrets")(show)
    group.command(
        cls=connection.ConnectedCommand,
        epilog="Example: airbridge ca rotate --root-dir /media/usb/root --trust-domain example.com",
    )(rotate)
    group.command(epilog="Example: airbridge ca new-root /media/usb/root-2 --trust-domain example.com")(
        new_root
    )
    group.command(epilog="Example: airbridge ca drop-root 5b0c9e1a7b3d4c60")(drop_root)
    return group


def build_keys() -> typer.Typer:
    """Return the command group ``keys``."""
    group = typer.Typer(
        help="Manage the keys that sign work items, access tokens and snapshots of DAG code.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command("stage-signing", epilog="Example: airbridge keys stage-signing")(stage_signing)
    group.command(
        "activate-signing", cls=connection.ConnectedCommand, epilog="Example: airbridge keys activate-signing"
    )(activate_signing)
    group.command("retire-signing", epilog="Example: airbridge keys retire-signing")(retire_signing)
    group.command("rotate-token", epilog="Example: airbridge keys rotate-token")(rotate_token)
    group.command("rotate-publishing", epilog="Example: airbridge keys rotate-publishing")(rotate_publishing)
    group.command(
        "retire-publishing",
        cls=connection.ConnectedCommand,
        epilog="Example: airbridge keys retire-publishing --wait 60",
    )(retire_publishing)
    group.command("retire-token", epilog="Example: airbridge keys retire-token")(retire_token)
    return group


def show(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Show the issuing CA and the roots with their key ids."""
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
    context: typer.Context,
    root_dir: RootDir = None,
    trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN,
    secrets_dir: SecretsDir = None,
    force: Force = False,
    wait: Wait = 0.0,
    json: Json = False,
) -> None:
    """Create a new issuing CA. Workers renew after their next heartbeat; nothing is interrupted.

    An issuing CA lasts 365 days. Once it has ended, the gateway cannot be reached and is not consulted; workers join again.
    """
    from airbridge.control_plane.identity import rotation, secrets

    path, now = _secrets(secrets_dir, connection.options(context).directory), datetime.now(UTC)
    root = secrets.load_root(root_dir or path / secrets.ROOT_DIRECTORY)
    before = rotation.certificates(path).issuing
    ended = before.not_valid_after_utc <= now
    _check_workers_ready(context, path, force=force or ended, wait=wait)
    ca = rotation.rotate_issuing_ca(path, root, trust_domain, now)
    from airbridge.control_plane.identity.ca import key_id

    _print_result(
        json,
        issuing_ca=ca.key_id,
        before=key_id(before),
        next=f"airbridge revocation add issuer {key_id(before)} --reason '...', once workers have renewed",
    )


def new_root(
    new_root_dir: Annotated[
        Path, typer.Argument(help="Directory to create it in; take it offline afterwards.", resolve_path=True)
    ],
    trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN,
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Create another root and trust it. Workers receive it by heartbeat; then run 'airbridge ca rotate' with it."""
    from airbridge.control_plane.identity import rotation, secrets

    path = _secrets(secrets_dir, directory)
    root = secrets.create_root(new_root_dir, trust_domain, datetime.now(UTC))
    rotation.add_root(path, root.certificate)
    _print_result(json, root=root.key_id, next=f"airbridge ca rotate --root-dir {new_root_dir}")


def drop_root(
    identifier: Annotated[
        str, typer.Argument(metavar="KEY_ID", help="The root's key id, as shown by 'airbridge ca show'.")
    ],
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Stop trusting a root. Distribute the new ca.crt as workers' ca_file first: restarting workers read it."""
    from airbridge.control_plane.identity import rotation

    rotation.drop_root(_secrets(secrets_dir, directory), identifier)
    _print_result(json, dropped=identifier)


def stage_signing(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Create the next work-item signing key and send its public half to workers by heartbeat."""
    from airbridge.control_plane.identity import rotation

    key = rotation.stage_signing_key(_secrets(secrets_dir, directory))
    _print_result(json, staged=key.kid, next="airbridge keys activate-signing")


def activate_signing(
    context: typer.Context,
    secrets_dir: SecretsDir = None,
    force: Force = False,
    wait: Wait = 0.0,
    json: Json = False,
) -> None:
    """Sign work items with the staged key. Refused while a live worker does not have it yet."""
    from airbridge.control_plane.identity import rotation

    path = _secrets(secrets_dir, connection.options(context).directory)
    _check_workers_ready(context, path, force=force, wait=wait)
    _print_result(
        json,
        signing=rotation.activate_signing_key(path).kid,
        next="airbridge keys retire-signing, after message_ttl",
    )


def retire_signing(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Stop accepting earlier signing keys. No message is signed with them after [airbridge] message_ttl seconds."""
    from airbridge.control_plane.identity import rotation

    gone = rotation.retire_signing_keys(_secrets(secrets_dir, directory))
    _print_result(json, retired=[key.kid for key in gone])


def rotate_token(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Sign workers' access tokens with a new key. Holders of older tokens renew after their next heartbeat."""
    from airbridge.control_plane.identity import rotation

    key = rotation.rotate_token_key(_secrets(secrets_dir, directory))
    _print_result(json, token_key=key.kid, next="airbridge keys retire-token, when workers have renewed")


def rotate_publishing(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Sign snapshots of DAG code with a new key, or a first one. What earlier keys have signed stays valid."""
    from airbridge.control_plane.identity import rotation

    key = rotation.rotate_publishing_key(_secrets(secrets_dir, directory))
    _print_result(
        json, publishing=key.kid, next="airbridge keys retire-publishing --wait 60, after message_ttl"
    )


def retire_publishing(
    context: typer.Context,
    secrets_dir: SecretsDir = None,
    force: Force = False,
    wait: Wait = 0.0,
    json: Json = False,
) -> None:
    """Stop accepting earlier publishing keys. Refused while a snapshot is signed by one, or a live worker lacks the current key."""
    from airbridge.control_plane.identity import rotation

    path = _secrets(secrets_dir, connection.options(context).directory)
    _check_workers_ready(context, path, force=force, wait=wait)
    if not force:
        _check_snapshots_signed(context, path, wait)
    gone = rotation.retire_publishing_keys(path)
    _print_result(json, retired=[key.kid for key in gone])


def retire_token(
    secrets_dir: SecretsDir = None,
    directory: StateDirectory = arguments.DEFAULT_DIRECTORY,
    json: Json = False,
) -> None:
    """Accept only access tokens signed with the current key."""
    from airbridge.control_plane.identity import rotation

    gone = rotation.retire_token_keys(_secrets(secrets_dir, directory))
    _print_result(json, retired=[key.kid for key in gone])


def _secrets(given: Path | None, directory: Path) -> Path:
    return given if given is not None else StateDir(directory).secrets


def _check_workers_ready(context: typer.Context, secrets_dir: Path, *, force: bool, wait: float) -> None:
    """Raise `ConfigurationError` unless every live worker has the trust bundle of these files."""
    if force:
        return
    from airbridge.control_plane.identity.keyring import Keyring

    wanted = Keyring.load(secrets_dir).keys.trust.version
    deadline = time.monotonic() + wait
    with connection.client(context) as client:
        while behind := _behind(client.get("workers")["workers"], wanted):
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"these workers do not have trust bundle {wanted} yet: {', '.join(behind)}; they get it with "
                    "their next heartbeat: use --wait 60 to wait for them, or --force to continue without them"
                )
            time.sleep(POLL_SECONDS)


def _check_snapshots_signed(context: typer.Context, secrets_dir: Path, wait: float) -> None:
    """Raise `ConfigurationError` unless every recorded snapshot is signed with the key of these files."""
    from airbridge.core.code.signature import PUBLISH_KEY
    from airbridge.executor.bundles.registry import read_signer

    current = read_signer(secrets_dir / PUBLISH_KEY).verify_key.kid
    deadline = time.monotonic() + wait
    with connection.client(context) as client:
        while others := _signed_by_others(client.get("keys")["snapshots_signed_by"], current):
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"snapshots are signed by other keys: {others}; the gateway signs them with {current} once it has publish.key and "
                    "publish.pub.json, and every live worker the trust bundle: use --wait 60 to wait for it. Those that it cannot verify it leaves: "
                    "publish their bundles again, and use --force to give up runs of their versions"
                )
            time.sleep(POLL_SECONDS)


def _signed_by_others(signed_by: dict[str, int], current: str) -> str:
    return ", ".join(
        f"{count} by {kid or 'none'}" for kid, count in sorted(signed_by.items()) if kid != current
    )


def _behind(workers: list[dict[str, Any]], wanted: str) -> list[str]:
    return sorted(each["id"] for each in workers if _alive(each) and each["trust_version"] != wanted)


def _alive(worker: dict[str, Any]) -> bool:
    seen = worker["last_heartbeat_at"]
    if seen is None or worker["wanted"] == "revoked":
        return False
    return (datetime.now(UTC) - datetime.fromisoformat(seen)).total_seconds() < ALIVE_SECONDS


def _print_result(json: bool, **found: Any) -> None:
    if json:
        output.emit_json(found)
        return
    for name, value in found.items():
        if name == "next":
            output.messages().print(f"Next: {value}", markup=False, soft_wrap=True)
        else:
            shown = ", ".join(value) or "none" if isinstance(value, list) else value
            output.emit_text(f"{name.replace('_', ' ')}: {shown}")
