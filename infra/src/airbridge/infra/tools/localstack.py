"""`make infra-localstack`: the supported part of every stack, deployed to LocalStack 4.14.0 with Terraform, and a second, empty plan.

    python -m airbridge.infra.tools.localstack local

LocalStack, in its last release without an account, has neither load balancers, autoscaling, ECR, ECS nor RDS. What needs one
of these is left out (`subset`), and listed. The rest is the same JSON that AWS would be given. Attributes that LocalStack itself loses
(`DEFECTS`) may show in the second plan, and nothing else. LocalStack is started here, on loopback, and ended at the end; the
directory `.localstack/` keeps the parts, their states, their second plans (`plan.json`) and its log.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airbridge.infra.exceptions import CommandFailedError, EmulatorError, InfraError
from airbridge.infra.tools import order, subset

START_SECONDS = 90.0
SUPPORTED = frozenset(
    {
        "aws_cloudwatch_log_group",
        "aws_cloudwatch_metric_alarm",
        "aws_default_security_group",
        "aws_eip",
        "aws_flow_log",
        "aws_iam_instance_profile",
        "aws_iam_openid_connect_provider",
        "aws_iam_role",
        "aws_iam_policy",
        "aws_iam_role_policy",
        "aws_iam_role_policy_attachment",
        "aws_internet_gateway",
        "aws_kms_alias",
        "aws_kms_key",
        "aws_launch_template",
        "aws_nat_gateway",
        "aws_route",
        "aws_route53_zone",
        "aws_route_table",
        "aws_route_table_association",
        "aws_s3_bucket",
        "aws_s3_bucket_lifecycle_configuration",
        "aws_s3_bucket_ownership_controls",
        "aws_s3_bucket_policy",
        "aws_s3_bucket_public_access_block",
        "aws_s3_bucket_server_side_encryption_configuration",
        "aws_s3_bucket_versioning",
        "aws_secretsmanager_secret",
        "aws_security_group",
        "aws_sns_topic",
        "aws_sns_topic_policy",
        "aws_sqs_queue",
        "aws_sqs_queue_policy",
        "aws_sqs_queue_redrive_allow_policy",
        "aws_ssm_parameter",
        "aws_subnet",
        "aws_vpc",
        "aws_vpc_endpoint",
        "aws_vpc_security_group_egress_rule",
        "aws_vpc_security_group_ingress_rule",
    }
)


@dataclass(frozen=True)
class Defect:
    """Attributes that LocalStack 4.14.0 does not return as they were set, by types of resource.

    `shows(before, after)` returns whether two values of an attribute differ by the defect alone.
    """

    what: str
    kinds: frozenset[str]
    attributes: frozenset[str]
    shows: Callable[[Any, Any], bool]

    def explains(self, kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        """Return whether this defect explains every value of a planned change."""
        differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        return (
            kind in self.kinds
            and bool(differing)
            and differing <= self.attributes
            and all(self.shows(before.get(name), after.get(name)) for name in differing)
        )


def _forgotten(before: Any, after: Any) -> bool:
    return not before and bool(after)


def _also_its_own_tags(before: Any, after: Any) -> bool:
    others = [one for one in before or () if one["resource_type"] != "launch-template"]
    return bool(others) and others == after


DEFECTS = (
    Defect(
        "tags of alarms forgotten",
        frozenset({"aws_cloudwatch_metric_alarm"}),
        frozenset({"tags", "tags_all"}),
        _forgotten,
    ),
    Defect(
        "descriptions forgotten of rules that refer to a group or a prefix list",
        frozenset({"aws_vpc_security_group_egress_rule", "aws_vpc_security_group_ingress_rule"}),
        frozenset({"description"}),
        _forgotten,
    ),
    Defect(
        "a launch template's own tags given back as if its instances were to have them",
        frozenset({"aws_launch_template"}),
        frozenset({"tag_specifications"}),
        _also_its_own_tags,
    ),
)


@dataclass(frozen=True)
class Result:
    """Result of one stack."""

    stack: str
    kept: int
    left_out: tuple[str, ...]
    seconds: float
    # Changes of the second plan, by address.
    changed: tuple[str, ...]
    # Number of changes by the LocalStack defect that explains them; these are not in `changed`.
    explained: Mapping[str, int]

    @property
    def empty(self) -> bool:
        """Return whether the second plan is empty but for LocalStack's defects."""
        return not self.changed


@dataclass(frozen=True)
class LocalStack:
    """A LocalStack on loopback, and the Python that has it."""

    python: Path
    directory: Path = Path(".localstack")
    port: int = 5700

    @property
    def endpoint_url(self) -> str:
        """Endpoint URL. By name: its own certificate and redirects do not come into it."""
        return f"http://127.0.0.1:{self.port}"

    def settings(self) -> dict[str, str]:
        """Environment in which it runs without Docker, on loopback alone, and as Terraform expects SQS to be."""
        return {
            "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
            # The default server binds every address, in spite of GATEWAY_LISTEN.
            "GATEWAY_SERVER": "hypercorn",
            "SQS_ENDPOINT_STRATEGY": "off",
            "DNS_ADDRESS": "0",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DISABLE_EVENTS": "1",
            "LOCALSTACK_VOLUME_DIR": str(self.directory.absolute() / "volume"),
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it; EmulatorError if it does not answer."""
        log = self.directory / "localstack.log"
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603  # our own command
                [str(self.python), "-m", "localstack.runtime.main"],
                env={**os.environ, **self.settings()},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            self._wait(process, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.endpoint_url}/_localstack/health", timeout=2):  # noqa: S310  # loopback
                    return
            except OSError:
                time.sleep(0.3)
        raise EmulatorError(f"LocalStack did not start; see {log}")


def try_stacks(local: LocalStack, synthesised: Path) -> list[Result]:
    """Apply and plan what LocalStack has of every stack under `synthesised`, in the order in which they are deployed."""
    shutil.rmtree(local.directory, ignore_errors=True)
    local.directory.mkdir()
    variables = {
        "AWS_ENDPOINT_URL": local.endpoint_url,
        # Its own names for buckets would need a name server.
        "AWS_S3_USE_PATH_STYLE": "true",
        "AWS_ACCESS_KEY_ID": "123456789012",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_MAX_ATTEMPTS": "2",
        "CHECKPOINT_DISABLE": "1",
    }
    outputs: dict[str, Mapping[str, Any]] = {}
    results = []
    with local.running():
        for name in _ordered(synthesised):
            results.append(_try(local, synthesised / name, variables, outputs))
            outputs[name] = _outputs(local.directory / name)
    return results


def _ordered(synthesised: Path) -> list[str]:
    names = [file.parent.name for file in sorted(synthesised.glob("*/cdk.tf.json"))]
    if not names:
        raise InfraError(f"{synthesised}: there are no synthesised stacks; run make synth first")
    return order.ordered(names)


def _outputs(directory: Path) -> Mapping[str, Any]:
    """The outputs of a stack that was applied in `directory`."""
    command = ["terraform", f"-chdir={directory}", "output", "-json"]
    shown = subprocess.run(command, check=True, capture_output=True)  # noqa: S603  # our own command
    return {name: one["value"] for name, one in json.loads(shown.stdout).items()}


def _try(
    local: LocalStack, source: Path, variables: Mapping[str, str], outputs: Mapping[str, Mapping[str, Any]]
) -> Result:
    started = time.monotonic()
    stack = subset.with_outputs(json.loads((source / "cdk.tf.json").read_text()), outputs)
    part = subset.of(stack, SUPPORTED, "terraform.tfstate")
    part.stack["provider"]["aws"][0]["s3_use_path_style"] = True
    directory = local.directory / source.name
    directory.mkdir()
    (directory / "main.tf.json").write_text(json.dumps(part.stack, indent=1))
    terraform(directory, variables, "init", "-input=false", "-no-color")
    terraform(directory, variables, "apply", "-input=false", "-no-color", "-auto-approve")
    terraform(directory, variables, "plan", "-input=false", "-no-color", "-out=plan")
    changed, explained = judge(_plan(directory))
    return Result(source.name, part.kept, part.left_out, time.monotonic() - started, changed, explained)


def _plan(directory: Path) -> dict[str, Any]:
    """The plan that Terraform made; it is left in `plan.json`."""
    command = ["terraform", f"-chdir={directory}", "show", "-json", "plan"]
    shown = subprocess.run(command, check=True, capture_output=True)  # noqa: S603  # our own command
    (directory / "plan.json").write_bytes(shown.stdout)
    plan: dict[str, Any] = json.loads(shown.stdout)
    return plan


def judge(plan: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The addresses that a plan would change for no known reason, and how many it would because of each known defect."""
    changed: list[str] = []
    explained: Counter[str] = Counter()
    for one in plan.get("resource_changes", ()):
        change = one["change"]
        if change["actions"] in (["no-op"], ["read"]):
            continue
        defect = _defect_of(one["type"], change) if change["actions"] == ["update"] else None
        if defect is None:
            changed.append(one["address"])
        else:
            explained[defect.what] += 1
    return tuple(changed), dict(explained)


def _defect_of(kind: str, change: Mapping[str, Any]) -> Defect | None:
    """Values known only after an update (a template's next version) follow from the rest."""
    unknown = {name for name, value in change.get("after_unknown", {}).items() if value is True}
    before, after = (
        {name: value for name, value in change[side].items() if name not in unknown}
        for side in ("before", "after")
    )
    return next((defect for defect in DEFECTS if defect.explains(kind, before, after)), None)


def terraform(directory: Path, variables: Mapping[str, str], *words: str) -> None:
    """Run terraform in a directory; CommandFailedError names the log that it leaves there."""
    command = ["terraform", f"-chdir={directory}", *words]
    log = directory / f"{words[0]}.log"
    with log.open("wb") as out:
        code = subprocess.run(  # noqa: S603  # our own command
            command, env={**os.environ, **variables}, stdout=out, stderr=out, check=False
        ).returncode
    if code:
        raise CommandFailedError(f"{' '.join(command)}: exit code {code}; see {log}")


def table(results: Sequence[Result]) -> str:
    """The results in Markdown, and by type what was left out."""
    lines = [
        "| stack | resources applied | left out | seconds | second plan |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in results:
        plan = "empty" if one.empty else f"**would change {', '.join(one.changed)}**"
        plan += "".join(f"; {count} x {what}" for what, count in sorted(one.explained.items()))
        lines.append(f"| {one.stack} | {one.kept} | {len(one.left_out)} | {one.seconds:.0f} | {plan} |")
    kinds = sorted({address.split(".")[0] for one in results for address in one.left_out})
    return "\n".join([*lines, "", f"Left out: {', '.join(kinds)}."]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 if every second plan is empty."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.tools.localstack", description="Try the stacks on LocalStack."
    )
    parser.add_argument("environment")
    parser.add_argument("--python", type=Path, default=Path(".venv-localstack/bin/python"))
    parser.add_argument("--port", type=int, default=5700)
    options = parser.parse_args(arguments)
    try:
        results = try_stacks(
            LocalStack(options.python.absolute(), port=options.port),
            Path("cdktf.out") / options.environment / "stacks",
        )
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(table(results))
    return 0 if all(one.empty for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
