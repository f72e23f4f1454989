"""`make infra-localstack`: what LocalStack 4.14.0 has of every stack, deployed to it with Terraform, and a second, empty plan.

    python -m airbridge.infra.localstack local

LocalStack, in its last release that asks for no token, has neither load balancers, autoscaling, ECR, ECS nor RDS; it loses the
tags of alarms, and the descriptions of rules between security groups. What needs one of these is left out (`subset`), and listed. The rest is the same JSON that AWS would be given. LocalStack is
started here, on loopback, and ended at the end; the directory `.localstack/` keeps the parts, their states and its log.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airbridge.infra import subset
from airbridge.infra.exceptions import CommandFailedError, EmulatorError, InfraError

START_SECONDS = 90.0
SUPPORTED = frozenset(
    {
        "aws_cloudwatch_log_group",
        "aws_iam_instance_profile",
        "aws_iam_openid_connect_provider",
        "aws_iam_role",
        "aws_iam_role_policy",
        "aws_internet_gateway",
        "aws_kms_alias",
        "aws_kms_key",
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
    }
)


@dataclass(frozen=True)
class Result:
    """How one stack fared."""

    stack: str
    kept: int
    left_out: tuple[str, ...]
    seconds: float
    changed: tuple[str, ...]
    """What the second plan would change, by address."""
    rewritten: tuple[str, ...]
    """What it would change in the white space of a JSON text alone: LocalStack writes such texts anew."""

    @property
    def empty(self) -> bool:
        """Whether the second plan would change nothing."""
        return not self.changed


@dataclass(frozen=True)
class LocalStack:
    """A LocalStack on loopback, and the Python that has it."""

    python: Path
    directory: Path = Path(".localstack")
    port: int = 5700

    @property
    def endpoint_url(self) -> str:
        """Where it listens. By name: its own certificate and redirects do not come into it."""
        return f"http://127.0.0.1:{self.port}"

    def settings(self) -> dict[str, str]:
        """What it must be told so that it runs without Docker, on loopback alone, and as Terraform expects SQS to be."""
        return {
            "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
            # The default server binds every address, whatever GATEWAY_LISTEN says.
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
    with local.running():
        return [_try(local, synthesised / name, variables) for name in _ordered(synthesised)]


def _ordered(synthesised: Path) -> list[str]:
    names = [file.parent.name for file in sorted(synthesised.glob("*/cdk.tf.json"))]
    if not names:
        raise InfraError(f"{synthesised}: there are no synthesised stacks; run make synth first")
    return sorted(names, key=lambda name: (name.startswith("edge-"), name))


def _try(local: LocalStack, source: Path, variables: Mapping[str, str]) -> Result:
    started = time.monotonic()
    part = subset.of(json.loads((source / "cdk.tf.json").read_text()), SUPPORTED, "terraform.tfstate")
    part.stack["provider"]["aws"][0]["s3_use_path_style"] = True
    directory = local.directory / source.name
    directory.mkdir()
    (directory / "main.tf.json").write_text(json.dumps(part.stack, indent=1))
    _terraform(directory, variables, "init", "-input=false", "-no-color")
    _terraform(directory, variables, "apply", "-input=false", "-no-color", "-auto-approve")
    _terraform(directory, variables, "plan", "-input=false", "-no-color", "-out=plan")
    changes = _changes(directory)
    return Result(
        source.name,
        part.kept,
        part.left_out,
        time.monotonic() - started,
        changed=tuple(address for address, same in changes.items() if not same),
        rewritten=tuple(address for address, same in changes.items() if same),
    )


def _changes(directory: Path) -> dict[str, bool]:
    """The addresses that a plan would change, and whether it is for the white space in a JSON text alone."""
    command = ["terraform", f"-chdir={directory}", "show", "-json", "plan"]
    shown = subprocess.run(command, check=True, capture_output=True)  # noqa: S603  # our own command
    (directory / "plan.json").write_bytes(shown.stdout)
    changes = {one["address"]: one["change"] for one in json.loads(shown.stdout).get("resource_changes", ())}
    return {
        address: _plain(change["before"]) == _plain(change["after"])
        for address, change in changes.items()
        if change["actions"] not in (["no-op"], ["read"])
    }


def _plain(value: object) -> object:
    """A value with the JSON texts in it read."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _terraform(directory: Path, variables: Mapping[str, str], *words: str) -> None:
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
        if one.rewritten:
            plan += f", but for white space in the JSON of {', '.join(one.rewritten)}"
        lines.append(f"| {one.stack} | {one.kept} | {len(one.left_out)} | {one.seconds:.0f} | {plan} |")
    kinds = sorted({address.split(".")[0] for one in results for address in one.left_out})
    return "\n".join([*lines, "", f"Left out: {', '.join(kinds)}."]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 if every second plan is empty."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.localstack", description="Try the stacks on LocalStack."
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
