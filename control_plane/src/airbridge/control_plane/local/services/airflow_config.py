"""airflow.cfg of each control plane process in local mode, with the secrets of its service alone."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from airbridge.control_plane.airflow_settings import (
    EXECUTOR,
    RECOMMENDED,
    Bundle,
    Setting,
    as_config,
    dag_bundles,
    merged,
)
from airbridge.control_plane.local import ports
from airbridge.control_plane.local.keys import Keys
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.services.postgres import Postgres
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.service_secrets import (
    FILES,
    OPTIONS,
    PUBLIC_FILES,
    Choices,
    Secret,
    Service,
    secrets_of,
)

TRUST_DOMAIN = "airbridge.local"
FOLDER_BUNDLE = "dags"
PUSH_BUNDLE = "pushed"
_REFRESH_SECONDS = 5


def settings(
    directory: StateDir, keys: Keys, dags: Path, overrides: Mapping[str, str]
) -> tuple[Setting, ...]:
    """Return the settings of every process: recommended, local, and the user's; later ones win. None is secret."""
    return merged(RECOMMENDED, _local(directory, keys, dags), parse_overrides(overrides))


def choices(overrides: Mapping[str, str]) -> Choices:
    """Return the user's settings on which secrets and database rights depend."""
    return Choices(
        executors=overrides.get("core.executor", EXECUTOR),
        parse_variables=overrides.get("airbridge.parse_variables", ""),
        parse_connections=overrides.get("airbridge.parse_connections", ""),
    )


def write_all(
    directory: StateDir, keys: Keys, server: Postgres, common: Iterable[Setting], choices: Choices
) -> None:
    """Write each process's airflow.cfg, and the links to its key files. All are readable only by their owner."""
    shutil.rmtree(directory.service(""), ignore_errors=True)
    (directory.airflow_home / "airflow.cfg").unlink(missing_ok=True)  # of before: it had every key
    common = tuple(common)
    for service in Service:
        given = secrets_of(service, choices)
        url = server.url_of(service.role, keys.service_passwords[service])
        own = (
            *_secret_settings(keys, given),
            _database(url),
            _secrets_dir(directory.service(service) / "secrets"),
        )
        _write(directory.config_file(service), merged(own, common))
        _link(directory, service, given)
    owner = (_database(server.url()), _secrets_dir(directory.secrets))
    _write(directory.config_file("database"), merged(_secret_settings(keys, ()), owner, common))
    _write(directory.operator_config_file, merged(_secret_settings(keys, Secret), owner, common))


def _secret_settings(keys: Keys, given: Iterable[Secret]) -> tuple[Setting, ...]:
    values = {
        Secret.FERNET_KEY: keys.fernet_key,
        Secret.JWT_SECRET: keys.jwt_secret,
        Secret.API_SECRET_KEY: keys.api_secret_key,
    }
    # Airflow's Execution API, which most services have in process, does not start without one: one that nobody verifies.
    found = {OPTIONS[Secret.JWT_SECRET]: secrets.token_urlsafe(32)}
    found |= {OPTIONS[secret]: values[secret] for secret in given if secret in OPTIONS}
    return tuple(Setting(section, option, value, "local mode") for (section, option), value in found.items())


def _database(url: str) -> Setting:
    return Setting("database", "sql_alchemy_conn", url, "the service's own role")


def _secrets_dir(path: Path) -> Setting:
    return Setting("airbridge", "secrets_dir", str(path), "local mode")


def _link(directory: StateDir, service: Service, given: Iterable[Secret]) -> None:
    """Link the key files of a service. Links, because a rotated key is a new file in the secrets directory."""
    folder = directory.service(service) / "secrets"
    folder.mkdir(mode=0o700)
    public = PUBLIC_FILES if service is Service.GATEWAY else ()
    for name in (*public, *(FILES[secret] for secret in given if secret in FILES)):
        (folder / name).symlink_to(directory.secrets.resolve() / name)


def _write(path: Path, settings: Iterable[Setting]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(as_config(settings))


def environment(directory: StateDir, component: str | None) -> dict[str, str]:
    """Return the environment of a control plane process: only the location of its configuration. None: the operator's."""
    path = directory.operator_config_file if component is None else directory.config_file(component)
    return {
        "AIRFLOW_HOME": str(directory.airflow_home),
        "AIRFLOW_CONFIG": str(path),
        "PYTHONUNBUFFERED": "1",
    }


def parse_overrides(overrides: Mapping[str, str]) -> tuple[Setting, ...]:
    """Parse ``{"core.parallelism": "16"}``. Raises `ConfigurationError` for a name without a section."""
    found = []
    for name, value in overrides.items():
        section, dot, option = name.partition(".")
        if not dot:
            raise ConfigurationError(
                f"Airflow setting {name!r} has no section; write it as section.option=value"
            )
        found.append(Setting(section, option, value, "given on the command line"))
    return tuple(found)


def _local(directory: StateDir, keys: Keys, dags: Path) -> tuple[Setting, ...]:
    url = f"http://{ports.LOOPBACK}:{keys.ports['api-server']}"
    rows = [
        (
            "core",
            "auth_manager",
            "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
        ),
        ("core", "simple_auth_manager_all_admins", "True"),
        ("core", "dags_folder", str(dags)),
        ("core", "execution_api_server_url", f"{url}/execution/"),
        ("core", "hostname_callable", "socket.gethostname"),
        ("api", "base_url", url),
        ("logging", "base_log_folder", str(directory.logs / "airflow")),
        ("dag_processor", "dag_bundle_storage_path", str(directory.airflow_home / "bundles")),
        ("dag_processor", "refresh_interval", str(_REFRESH_SECONDS)),
        ("dag_processor", "bundle_refresh_check_interval", "2"),
        ("dag_processor", "min_file_process_interval", "10"),
        ("airbridge", "regions_file", str(directory.regions_file)),
        # A killed emulator loses its queues; their messages are sent again after this time.
        ("airbridge", "message_ttl", "60"),
        ("airbridge", "trust_domain", TRUST_DOMAIN),
        ("airbridge", "gateway_host", ports.LOOPBACK),
        ("airbridge", "gateway_port", str(keys.ports["gateway"])),
        ("airbridge", "operator_port", str(keys.ports["operator"])),
        ("airbridge", "gateway_names", ports.LOOPBACK),
        ("airbridge", "audit_anchors", f"file://{directory.audit_anchors}"),
        ("airbridge", "policy_file", str(directory.policy_file)),
    ]
    local = [Setting(section, option, value, "local mode") for section, option, value in rows]
    bundles = (
        # A half-written file must not block the others, and each save should take effect soon.
        Bundle(FOLDER_BUNDLE, {"kind": "folder", "path": str(dags)}, _REFRESH_SECONDS, refuse_broken=False),
        Bundle(PUSH_BUNDLE, {"kind": "push"}, _REFRESH_SECONDS),
    )
    return (*local, dag_bundles(bundles))
