"""`keygen`, `sign`, `verify`, `promote` and `deploy`."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from airbridge.ci.checkout import Checkout
from airbridge.ci.cli import exit_codes, output
from airbridge.ci.exceptions import CiError, PromotionRefused
from airbridge.ci.release import keys, manifest, pins
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.release.pins import WorkerImages
from airbridge.ci.rollout.cdktf import Cdktf, with_progress
from airbridge.ci.rollout.control_plane import ControlPlane, over_http
from airbridge.ci.rollout.deployment import ControlPlaneTurn, Deploy, Rollout
from airbridge.ci.rollout.drift import find as find_drift
from airbridge.ci.rollout.plan import Step
from airbridge.ci.rollout.pools import AutoScalingPools, images
from airbridge.ci.rollout.promotion import Direction, Promotion
from airbridge.ci.rollout.rules import Rules
from airbridge.ci.tools import run

Root = Annotated[Path, typer.Option("--root", help="the checkout", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="the result as JSON")]
Url = Annotated[
    str | None, typer.Option("--url", help="the operators' API of the environment's control plane")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="file with an access token for it: workers:read, workers:drain"),
]
Ca = Annotated[str | None, typer.Option("--ca", help="PEM of the authority that its certificate chains to")]
AirflowUrl = Annotated[
    str | None, typer.Option("--airflow-url", help="Airflow's address, to count failed tasks")
]
AirflowTokenFile = Annotated[
    Path | None, typer.Option("--airflow-token-file", help="file with a token for it")
]

BUILD = "build"


def keygen(
    file: Annotated[Path, typer.Argument(help="where the private key goes; must not exist")],
    owner: Annotated[str, typer.Option(help="who holds it")],
) -> None:
    """Make a signing key. Prints the entry for images/release-keys.toml.

    Example: airbridge-ci keygen release.key --owner 'release pipeline' >> images/release-keys.toml
    """
    output.result(keys.create(file, owner).rstrip("\n"))
    output.report(f"the private key is in {file}; it is all that a forger needs")


def sign(
    key: Annotated[Path, typer.Option(help="the private key, mode 0600")],
    file: Annotated[Path, typer.Argument(help="the release manifest")] = Path("dist/release.json"),
) -> None:
    """Sign a release manifest, in place.

    Example: airbridge-ci sign --key release.key dist/release.json
    """
    signed = manifest.load(file).signed(keys.private(key))
    file.write_text(signed.text(), encoding="utf-8")
    output.report(f"signed {signed.release.digest} as {signed.signatures[-1].kid}")


def verify(
    file: Annotated[Path, typer.Argument(help="the release manifest")],
    root: Root = Path(),
) -> None:
    """Check that a release manifest is signed by a trusted key and was not altered.

    Example: airbridge-ci verify infra/environments/prod.release.json
    """
    checkout = Checkout.find(root.resolve())
    loaded = manifest.load(file)
    kid = loaded.verify(keys.load(checkout.root / keys.FILE))
    output.result(f"{loaded.release.digest} signed by {kid}")


def promote(
    source: Annotated[str, typer.Argument(help="the environment the release is in, or 'build'")],
    target: Annotated[str, typer.Argument(help="the environment it moves to")],
    *,
    root: Root = Path(),
    file: Annotated[Path, typer.Option("--manifest", help="the signed manifest of a build")] = Path(
        "dist/release.json"
    ),
    rollback: Annotated[
        bool, typer.Option(help="go back to the release that the target was on before")
    ] = False,
    to: Annotated[
        str | None, typer.Option(help="with --rollback: the commit of the release to go back to")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="check and show, but change nothing")] = False,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    airflow_url: AirflowUrl = None,
    airflow_token_file: AirflowTokenFile = None,
    as_json_: AsJson = False,
) -> None:
    """Move a release forward, unchanged, as one commit. `--url` names the source environment's control plane.

    Example: airbridge-ci promote dev staging --url https://gateway.dev.example.com:8444 --token-file token
    """
    checkout = Checkout.find(root.resolve())
    rules = Rules(checkout, datetime.now(tz=UTC))
    if to is not None and not rollback:
        raise typer.BadParameter("--to goes with --rollback")
    promotion = _promotion(rules, source, target, file=file, to=to, rollback=rollback)
    rules.check(promotion, control_plane(url, token_file, ca, airflow_url, airflow_token_file))
    changes = promotion.changes()
    if as_json_:
        output.result_json([asdict(change) for change in changes])
    else:
        output.result_table(("what", "before", "after"), [(c.what, c.before, c.after) for c in changes])
    if dry_run:
        return
    commit = promotion.commit(promotion.write())
    output.report(f"{target} is on {promotion.manifest.release.digest}, commit {commit[:12]}")


def _promotion(
    rules: Rules, source: str, target: str, *, file: Path, to: str | None, rollback: bool
) -> Promotion:
    if rollback:
        return Promotion(rules.checkout, target, rules.earlier(target, to, older=True), None, Direction.BACK)
    if source == BUILD:
        return Promotion(rules.checkout, target, manifest.load(file), None)
    return Promotion(rules.checkout, target, rules.of_environment(source), source)


def deploy(
    environment: Annotated[str, typer.Argument(help="the environment")],
    *,
    url: Url = None,
    root: Root = Path(),
    token_file: TokenFile = None,
    ca: Ca = None,
    airflow_url: AirflowUrl = None,
    airflow_token_file: AirflowTokenFile = None,
    only_edge: Annotated[bool, typer.Option(help="leave the control plane's stack as it is")] = False,
    aws_pools: Annotated[
        bool,
        typer.Option(help="read from AWS which pools are idle; without, every region needs a live worker"),
    ] = True,
    cdktf: Annotated[
        str, typer.Option(help="how cdktf is called")
    ] = "npx --no-install cdktf deploy --auto-approve",
    as_json_: AsJson = False,
) -> None:
    """Apply the environment's release, region by region in waves; a wave that fails is rolled back by itself.

    Example: airbridge-ci deploy staging --url https://gateway.staging.example.com:8444 --token-file token
    """
    checkout = Checkout.find(root.resolve())
    rules = Rules(checkout, datetime.now(tz=UTC))
    step = _step(rules, environment)
    release = rules.check_deployment(environment)
    pinned = pins.load(checkout, environment)
    before = rules.before(environment)
    health = _required(control_plane(url, token_file, ca, airflow_url, airflow_token_file))
    pools = AutoScalingPools(environment, images(pinned)) if aws_pools else None
    rollout = Rollout(
        control_plane=health,
        deploy=_applying(checkout, environment, cdktf, release, before),
        step=step,
        old=WorkerImages.of((before or release).release),
        new=WorkerImages.of(release.release),
        now=lambda: datetime.now(tz=UTC),
        sleep=time.sleep,
        report=output.report,
        pools=pools,
        want=pools.want if pools else None,
    )
    try:
        rollout.run(pinned.regions, _order(release, before, only_edge=only_edge))
    finally:
        _show(rollout, as_json_)


def _step(rules: Rules, environment: str) -> Step:
    step = rules.plan().environment.get(environment)
    if step is None:
        raise PromotionRefused(
            f"{environment} is not in ci/rollout.toml; there are: {', '.join(rules.plan().order())}"
        )
    return step


def _applying(
    checkout: Checkout, environment: str, command: str, release: Manifest, before: Manifest | None
) -> Deploy:
    """Return what applies a stack with the images of these releases."""
    releases = (release, before) if before else (release,)
    return with_progress(Cdktf(checkout, environment, tuple(command.split()), releases), output.report)


def _required(found: ControlPlane | None) -> ControlPlane:
    if found is None:
        raise CiError("deploy watches the new workers: name the control plane with --url")
    return found


def _order(release: Manifest, before: Manifest | None, *, only_edge: bool) -> ControlPlaneTurn:
    """Return when the control plane's stack is applied: the newer side always knows the older one, so it goes last on the way back."""
    if only_edge:
        return ControlPlaneTurn.NEVER
    back = before is not None and release.release.committed_at < before.release.committed_at
    return ControlPlaneTurn.LAST if back else ControlPlaneTurn.FIRST


def _show(rollout: Rollout, as_json_: bool) -> None:
    if as_json_:
        output.result_json([asdict(result) for result in rollout.results])
        return
    rows = [(", ".join(r.regions), r.outcome, f"{r.seconds:.0f}", r.detail) for r in rollout.results]
    output.result_table(("wave", "outcome", "seconds", "detail"), rows)


def control_plane(
    url: str | None,
    token_file: Path | None,
    ca: str | None,
    airflow_url: str | None,
    airflow_token_file: Path | None,
) -> ControlPlane | None:
    """Return the control plane that a command's options name; None if they name none."""
    if url is None:
        return None
    return over_http(url, _token(token_file), ca, airflow_url, _token(airflow_token_file))


def _token(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CiError(f"{file}: the token cannot be read: {error.strerror}") from error


def drift(
    environment: Annotated[str, typer.Argument(help="the environment")],
    root: Root = Path(),
    as_json_: AsJson = False,
) -> None:
    """Plan every synthesised stack of an environment; exit 6 if what runs is not what is written.

    Example: airbridge-ci drift prod
    """
    checkout = Checkout.find(root.resolve())
    found = find_drift(checkout, environment, run)
    if as_json_:
        output.result_json(found)
    else:
        rows = [(stack, ", ".join(changes) or "as written") for stack, changes in found.items()]
        output.result_table(("stack", "changed outside"), rows)
    if any(found.values()):
        raise typer.Exit(exit_codes.DRIFT)
