"""The app: reads an environment, wires its stacks, and nothing else.

`cdktf` starts it as `python -m airbridge.infra.app`, with the environment's name in AIRBRIDGE_ENV.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from airbridge.infra import aws_facts, task_policy
from airbridge.infra import environment as environments
from airbridge.infra.cdk import App
from airbridge.infra.exceptions import InfraError
from airbridge.infra.settings import Settings
from airbridge.infra.stacks.base import Deployment
from airbridge.infra.stacks.bootstrap import BootstrapStack
from airbridge.infra.stacks.control_plane import ControlPlaneStack
from airbridge.infra.stacks.edge import EdgeStack
from airbridge.infra.stacks.foundation import FoundationStack
from airbridge.infra.trust import releases


def wire(app: App, deployment: Deployment) -> None:
    """Every stack of an environment, in the order of a first deployment."""
    BootstrapStack(app, deployment)
    FoundationStack(app, deployment)
    ControlPlaneStack(app, deployment)
    for region in deployment.environment.regions:
        EdgeStack(app, deployment, region)


def synthesise(settings: Settings, outdir: Path | None = None) -> Path:
    """Write the stacks of the environment that `settings` names; return where they are."""
    environment = environments.load(settings.file)
    verified = releases.load(environment, settings.environments, settings.release_keys)
    if outdir is not None:
        outdir.mkdir(parents=True, exist_ok=True)
    app = App(outdir=str(outdir)) if outdir else App()
    written = Path(app.outdir)
    stack_directory = written.absolute() / "stacks" / "any"
    deployment = Deployment(
        environment=environment,
        allow_destroy=settings.allow_destroy,
        local_state=settings.local_state,
        python=os.path.relpath(sys.executable, stack_directory),
        policy=task_policy.load(settings.policy_file),
        releases=verified,
    )
    wire(app, deployment)
    app.synth()
    for file in written.glob("stacks/*/cdk.tf.json"):
        file.write_text(aws_facts.in_partition(file.read_text(), environment.home_region))
    return written


def main() -> int:
    """Synthesise for cdktf; 0, or 1 with the reason on stderr."""
    try:
        synthesise(Settings.read())
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
