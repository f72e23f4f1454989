"""Layout of the state directory, which holds a whole local platform. Deleting it deletes the platform."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StateDir:
    """Paths inside one state directory."""

    root: Path

    @property
    def lock_file(self) -> Path:
        """Lock file that the supervisor holds while it runs; its content is the supervisor's pid."""
        return self.root / "supervisor.lock"

    @property
    def platform_file(self) -> Path:
        """State of the running platform: pids, URLs, phases."""
        return self.root / "platform.json"

    @property
    def logs(self) -> Path:
        """Folder with one log file per component."""
        return self.root / "logs"

    @property
    def airflow_home(self) -> Path:
        """AIRFLOW_HOME of the control plane. Each process has an airflow.cfg of its own: see `config_file`."""
        return self.root / "airflow"

    @property
    def scratch(self) -> Path:
        """Working directory of the control plane's processes, with nothing of the platform's own in it."""
        return self.root / "scratch"

    @property
    def dags(self) -> Path:
        """Default folder of DAG files."""
        return self.root / "dags"

    @property
    def postgres(self) -> Path:
        """Data directory of Postgres."""
        return self.root / "postgres"

    @property
    def control_plane(self) -> Path:
        """Folder of keys and passwords, only for the control plane."""
        return self.root / "control-plane"

    @property
    def secrets(self) -> Path:
        """Secrets directory: CA, signing and token keys."""
        return self.control_plane / "secrets"

    @property
    def keys_file(self) -> Path:
        """Airflow's keys, the database password and the ports, kept across restarts."""
        return self.control_plane / "keys.json"

    @property
    def operator_config_file(self) -> Path:
        """airflow.cfg of Airflow's command line, for the platform's operator: the database's owner, and every key."""
        return self.control_plane / "airflow.cfg"

    def config_file(self, component: str) -> Path:
        """Return the airflow.cfg of a component."""
        return self.service(component) / "airflow.cfg"

    def service(self, component: str) -> Path:
        """Return the folder with the configuration of a component, and with links to the keys that it needs."""
        return self.control_plane / "services" / component

    @property
    def initial_password_file(self) -> Path:
        """Password of the database template, until the database has its own."""
        return self.control_plane / "postgres.initial"

    @property
    def audit_anchors(self) -> Path:
        """File of the audit trail's anchors, outside of the database."""
        return self.control_plane.resolve() / "audit-anchors.jsonl"

    @property
    def operator_token_file(self) -> Path:
        """Access token of the command line."""
        return self.control_plane / "operator.token"

    @property
    def regions_file(self) -> Path:
        """Region catalogue."""
        return self.control_plane / "regions.toml"

    @property
    def policy_file(self) -> Path:
        """Policy of tasks."""
        return self.control_plane / "policy.toml"

    @property
    def ca_file(self) -> Path:
        """CA certificate, without its key, readable by workers."""
        return self.root / "ca.crt"

    @property
    def aws_resources_file(self) -> Path:
        """Queues and buckets that the AWS emulator creates."""
        return self.root / "aws-resources.json"

    @property
    def grants_file(self) -> Path:
        """IAM roles by token, for a platform on resources that Terraform created."""
        return self.control_plane / "grants.json"

    def worker(self, name: str) -> Path:
        """Return the home directory of a worker."""
        return self.root / "workers" / name

    def join_token_file(self, worker: str) -> Path:
        """Return the file of a worker's join token."""
        return self.worker(worker) / "join.token"

    def log(self, component: str) -> Path:
        """Return a component's log file."""
        return self.logs / f"{component}.log"

    def make(self) -> None:
        """Create the directories, closed to other users."""
        for folder in (self.root, self.logs, self.airflow_home, self.control_plane):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def replace_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace a file in one step, readable only by its owner. Where that fails, as on a full disk, it stays as it was.

    Without `sync` it may be lost with the machine's power.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
