"""Start, supervision and stop of a local platform."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import structlog

from airbridge.control_plane.airflow_settings import AT_CREATION, as_environment
from airbridge.control_plane.identity import rotation
from airbridge.control_plane.identity import secrets as identity_secrets
from airbridge.control_plane.local import environment, gateway, plan, state
from airbridge.control_plane.local.exceptions import StartFailed
from airbridge.control_plane.local.keys import load_or_make
from airbridge.control_plane.local.layout import StateDir, replace_text
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.process.child import Spawn
from airbridge.control_plane.local.process.supervisor import Clock, Supervisor
from airbridge.control_plane.local.services import airflow_config, aws, credentials, postgres, terraform
from airbridge.control_plane.local.services.residency import with_residency
from airbridge.control_plane.local.services.teams import with_teams
from airbridge.control_plane.local.state import ComponentState, Phase, PlatformPhase, PlatformState

TICK_SECONDS = 0.1
ROTATED_CA = "made a new issuing CA: the current one has ended, or ends soon"
BUILDING_TEMPLATE = "building the database template, once for this version"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Watcher:
    """Callbacks for progress."""

    note: Callable[[str], None]
    changed: Callable[[ComponentState], None]
    ready: Callable[[PlatformState], None]


class Platform:
    """Platform in one state directory. The caller holds the directory's lock."""

    def __init__(
        self,
        options: Options,
        *,
        environ: Mapping[str, str],
        cache: Path,
        spawn: Spawn,
        clock: Clock,
        watcher: Watcher,
    ) -> None:
        self._directory = StateDir(options.directory)
        self._options = options
        self._environ = environ
        self._cache = cache
        self._spawn = spawn
        self._clock = clock
        self._watcher = watcher
        self._begun = clock.monotonic()
        self._started_at = datetime.now(UTC)
        self._seconds_to_ready: float | None = None

    def run(self, wanted: Callable[[], bool]) -> None:
        """Start the platform and supervise it while `wanted` returns true; then stop it.

        Raises `StartFailed` if a component does not become ready, after every started process has ended.
        """
        the_plan = self.prepare()
        supervisor = Supervisor(plan.components(the_plan), self._spawn, self._clock)
        phase = PlatformPhase.STARTING
        try:
            while wanted():
                changed = supervisor.tick()
                if changed:
                    phase = self._settle(the_plan, supervisor, phase, changed)
                self._clock.sleep(TICK_SECONDS)
        finally:
            self._write(the_plan, supervisor, PlatformPhase.STOPPING)
            supervisor.stop(self._watcher.changed)
            self._write(the_plan, supervisor, PlatformPhase.STOPPED)

    def prepare(self) -> plan.Plan:
        """Create every file that the processes need."""
        directory = self._directory
        directory.make()
        wanted = {"api-server": self._options.port} if self._options.port else {}
        keys = load_or_make(directory.keys_file, plan.PORTS, wanted)
        if prepare_secrets(directory.secrets, datetime.now(UTC)):
            self._watcher.note(ROTATED_CA)
        shutil.copyfile(directory.secrets / identity_secrets.CA_CERTIFICATE, directory.ca_file)
        migrate = self._prepare_database()
        applied = self._applied()
        the_plan = plan.Plan(self._options, directory, keys, self._environ, migrate, applied)
        the_plan.dags.mkdir(parents=True, exist_ok=True)
        if applied is None:
            aws.write(directory.aws_resources_file, the_plan.resources)
            regions = aws.catalogue(the_plan.resources, keys.ports["aws"])
        else:
            regions = applied.deployed.text
        regions = with_residency(regions, self._options.residency)
        directory.regions_file.write_text(with_teams(regions, self._options.teams))
        own = {} if applied is None else _deployed_settings()
        if not directory.policy_file.exists():
            replace_text(directory.policy_file, Path(__file__).with_name("policy.toml").read_text())
        own |= environment.package_settings(self._environ)
        settings = airflow_config.settings(directory, keys, the_plan.dags, {**own, **self._options.airflow})
        airflow_config.write_all(directory, keys, the_plan.server, settings, the_plan.choices)
        if names := plan.overridden_task_variables(the_plan):
            self._watcher.note(f"tasks have your own value of {', '.join(names)} instead of the platform's")
        gateway.write_tokens(directory, [worker.name for worker in plan.workers(self._options)])
        return the_plan

    def _applied(self) -> plan.Applied | None:
        """Read the Terraform deployment, if there is one, and create tokens for its roles."""
        if self._options.terraform is None:
            return None
        deployed = terraform.read(self._options.terraform)
        grants = credentials.Grants.make(deployed.endpoint_url, deployed.roles, deployed.data_buckets)
        grants.write(self._directory.grants_file)
        return plan.Applied(deployed, grants)

    def _prepare_database(self) -> bool:
        """Create the data directory if it is missing; return whether it must be migrated."""
        key = current_schema()
        if self._directory.postgres.exists():
            postgres.remove_stale_lock(self._directory.postgres)
            return not postgres.is_current(self._directory.postgres, key)
        if not has_template(self._cache):
            self._watcher.note(BUILDING_TEMPLATE)
        template, password = postgres.build_template(self._cache, key, self._migrate)
        postgres.restore(template, self._directory.postgres, password, self._directory.initial_password_file)
        return False

    def _migrate(self, server: postgres.Postgres) -> None:
        with tempfile.TemporaryDirectory() as home:
            done = subprocess.run(  # noqa: S603 - no untrusted arguments
                plan.MIGRATE,
                env={
                    **environment.base(self._environ),
                    **as_environment(AT_CREATION),
                    "AIRFLOW_HOME": home,
                    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": server.url(),
                },
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode != 0:
            raise StartFailed("database", f"could not be migrated: {done.stderr[-2000:]}")

    def _settle(
        self,
        the_plan: plan.Plan,
        supervisor: Supervisor,
        phase: PlatformPhase,
        changed: list[ComponentState],
    ) -> PlatformPhase:
        """Report the changed components; return the platform's new phase."""
        for component in changed:
            if component.name == "database" and component.phase is Phase.DONE:
                postgres.stamp(self._directory.postgres, current_schema())
            self._watcher.changed(component)
        if phase is PlatformPhase.STARTING and supervisor.ready:
            self._seconds_to_ready = round(self._clock.monotonic() - self._begun, 1)
            self._watcher.ready(self._write(the_plan, supervisor, PlatformPhase.READY))
            return PlatformPhase.READY
        self._write(the_plan, supervisor, phase)
        return phase

    def _write(self, the_plan: plan.Plan, supervisor: Supervisor, phase: PlatformPhase) -> PlatformState:
        now = PlatformState(
            phase=phase,
            pid=state.own_pid(),
            root=str(self._directory.root),
            started_at=self._started_at,
            seconds_to_ready=self._seconds_to_ready,
            ui_url=the_plan.ui_url,
            gateway_url=the_plan.gateway_url,
            operator_url=the_plan.operator_url,
            aws_url=the_plan.aws_url,
            dags=str(the_plan.dags),
            components=supervisor.states(),
        )
        try:
            state.write(self._directory.platform_file, now)
        except OSError as error:
            # The file is for other commands: the platform goes on, and stops in order, without it.
            log.warning("platform.state_not_written", phase=phase, error=str(error))
        return now


def prepare_secrets(directory: Path, now: datetime) -> bool:
    """Create the control plane's keys if there are none; return whether an issuing CA that ends soon was replaced."""
    if not directory.exists():
        identity_secrets.create_all(directory, airflow_config.TRUST_DOMAIN, now)
        return False
    return rotation.rotate_ending_ca(directory, airflow_config.TRUST_DOMAIN, now) is not None


def _deployed_settings() -> dict[str, str]:
    # Imported here: it loads Airflow, which takes a second, and only a deployment needs it.
    from airbridge.control_plane.observability import alarms

    return {"airbridge.scaling_namespace": alarms.NAMESPACE}


def has_template(cache: Path) -> bool:
    """Return whether a platform can start from a migrated database."""
    return postgres.has_template(cache, current_schema())


def current_schema() -> str:
    """Return the name of what the installed packages make of an empty database."""
    migrations = files("airbridge.executor.ledger") / "migrations" / "versions"
    return postgres.schema_key(
        Path(str(migrations)), {"airflow": version("apache-airflow-core"), **as_environment(AT_CREATION)}
    )
