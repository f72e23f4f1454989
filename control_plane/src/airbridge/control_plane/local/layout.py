"""The state directory: where everything of a local platform lies. Deleting it deletes the platform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StateDir:
    """Paths inside one state directory."""

    root: Path

    @property
    def lock_file(self) -> Path:
        """Held by the supervisor for as long as it lives; its content is the supervisor's pid."""
        return self.root / "supervisor.lock"

    @property
    def platform_file(self) -> Path:
        """What runs: pids, URLs, phases."""
        return self.root / "platform.json"

    @property
    def logs(self) -> Path:
        """One log file a component."""
        return self.root / "logs"

    @property
    def airflow_home(self) -> Path:
        """The control plane's AIRFLOW_HOME, with its airflow.cfg."""
        return self.root / "airflow"

    @property
    def dags(self) -> Path:
        """The folder of DAG files, unless another one is given."""
        return self.root / "dags"

    @property
    def postgres(self) -> Path:
        """Postgres' data directory."""
        return self.root / "postgres"

    @property
    def control_plane(self) -> Path:
        """What only the control plane may read: keys, passwords."""
        return self.root / "control-plane"

    @property
    def secrets(self) -> Path:
        """CA, signing and token keys."""
        return self.control_plane / "secrets"

    @property
    def keys_file(self) -> Path:
        """Airflow's own keys, the database password and the ports, kept from one start to the next."""
        return self.control_plane / "keys.json"

    @property
    def initial_password_file(self) -> Path:
        """The database's first password, until it has one of its own."""
        return self.control_plane / "postgres.initial"

    @property
    def operator_token_file(self) -> Path:
        """The access token that the command line uses."""
        return self.control_plane / "operator.token"

    @property
    def regions_file(self) -> Path:
        """The region catalogue."""
        return self.control_plane / "regions.toml"

    @property
    def policy_file(self) -> Path:
        """What tasks may do beyond their own."""
        return self.control_plane / "policy.toml"

    @property
    def ca_file(self) -> Path:
        """The CA certificate, without its key, where a worker may read it."""
        return self.root / "ca.crt"

    @property
    def aws_resources_file(self) -> Path:
        """The queues and buckets that the AWS emulator makes."""
        return self.root / "aws-resources.json"

    @property
    def grants_file(self) -> Path:
        """Which token stands for which IAM role, when the platform runs on what Terraform made."""
        return self.control_plane / "grants.json"

    def worker(self, name: str) -> Path:
        """Return the directory that is all a worker has."""
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
