"""The subset of a stack for an emulator that lacks services, and the commands of the local deployment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.infra.conftest import ENVIRONMENTS, Stacks

from airbridge.infra.exceptions import InfraError
from airbridge.infra.tools import local as deployment
from airbridge.infra.tools import subset
from airbridge.infra.tools.localstack import SUPPORTED, judge


def test_dependants_of_unsupported_are_removed(local: Stacks) -> None:
    """An instance profile's group is removed, the role and the queues stay, and no reference dangles."""
    part = subset.of(local["edge-eu-west-1"], SUPPORTED, "state")
    gone = {address.split(".")[0] for address in part.left_out}
    assert {"aws_autoscaling_group", "aws_autoscaling_policy"} <= gone
    assert 2 == len(part.stack["resource"]["aws_sqs_queue"])
    assert "aws_route53_record" in gone  # by what it refers to: the endpoint
    kept = {f"{kind}.{name}" for kind, named in part.stack["resource"].items() for name in named}
    named = {address for address in subset.references(part.stack) if address.startswith("aws_")}
    assert set() == named - kept


def test_outputs_replace_references() -> None:
    """A value of another stack's outputs takes the place of a reference to it; an unknown one stays."""
    state = "${data.terraform_remote_state.foundation.outputs"
    stack = {
        "resource": {"k": {"n": {"key": state + ".key_arn}", "secret": state + ".secret_arns.ca-key}:x"}}}
    }
    other = {"resource": {"k": {"n": {"key": state + ".none}", "secret": state + ".secret_arns.none}"}}}}
    outputs = {"foundation": {"key_arn": "arn:key", "secret_arns": {"ca-key": "arn:secret"}}}
    filled = subset.with_outputs(stack, outputs)["resource"]["k"]["n"]
    assert {"key": "arn:key", "secret": "arn:secret:x"} == filled
    assert other == subset.with_outputs(other, outputs)


TAGS = {"a": "b"}
TEMPLATE = [{"resource_type": "instance", "tags": TAGS}]
OWN = {"resource_type": "launch-template", "tags": TAGS}


def change(
    kind: str, before: Any, after: Any, actions: tuple[str, ...] = ("update",), **unknown: bool
) -> dict[str, Any]:
    """One change of a plan."""
    told = {"actions": [*actions], "before": before, "after": after, "after_unknown": unknown}
    return {"address": f"{kind}.x", "type": kind, "change": told}


@pytest.mark.parametrize(
    "one",
    [
        change("aws_cloudwatch_metric_alarm", {"tags": {}, "tags_all": {}}, {"tags": TAGS, "tags_all": TAGS}),
        change(
            "aws_vpc_security_group_egress_rule", {"description": None}, {"description": "out: endpoints"}
        ),
        change(
            "aws_launch_template",
            {"tag_specifications": [*TEMPLATE, OWN], "latest_version": 1},
            {"tag_specifications": TEMPLATE},
            latest_version=True,
        ),
    ],
)
def test_known_localstack_defects_are_tolerated(one: dict[str, Any]) -> None:
    """Exactly the three known defects of LocalStack are tolerated."""
    changed, explained = judge({"resource_changes": [one]})
    assert () == changed
    assert [1] == list(explained.values())


@pytest.mark.parametrize(
    "one",
    [
        change("aws_cloudwatch_metric_alarm", {"tags": {"a": "x"}}, {"tags": TAGS}),
        change("aws_cloudwatch_metric_alarm", {"tags": {}, "threshold": 1}, {"tags": TAGS, "threshold": 2}),
        change("aws_cloudwatch_metric_alarm", {"tags": {}}, {"tags": TAGS}, actions=("delete", "create")),
        change("aws_vpc_security_group_egress_rule", {"description": "in"}, {"description": "out"}),
        change("aws_launch_template", {"tag_specifications": [OWN]}, {"tag_specifications": TEMPLATE}),
        change("aws_sqs_queue", {"tags": {}}, {"tags": TAGS}),
        change("aws_sqs_queue", {"redrive_policy": '{"a": 1}'}, {"redrive_policy": '{"a":1}'}),
        change("aws_sqs_queue", None, {"name": "q"}, actions=("create",)),
    ],
)
def test_anything_else_is_a_change(one: dict[str, Any]) -> None:
    """Another value, another attribute beside it, another type, a replacement, or white space."""
    assert ((one["address"],), {}) == judge({"resource_changes": [one]})


def test_the_stack_itself_is_left_alone(local: Stacks) -> None:
    """The part has its state in a file; the stack that it comes from keeps its own."""
    before = json.dumps(local["control-plane"])
    part = subset.of(local["control-plane"], SUPPORTED, "here.tfstate")
    assert {"local": {"path": "here.tfstate"}} == part.stack["terraform"]["backend"]
    assert before == json.dumps(local["control-plane"])
    assert part.kept + len(part.left_out) == sum(
        len(named) for named in local["control-plane"]["resource"].values()
    )


class Ran:
    """Notes commands instead of running them."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __call__(self, command: Sequence[str], _variables: Mapping[str, str]) -> None:
        self.commands.append(" ".join(command))


def here(directory: Path) -> deployment.Local:
    made = deployment.Local(directory=directory, environments=ENVIRONMENTS)
    edge = {
        "log_bucket": "l",
        "bundle_bucket": "b",
        "dead_letter_queue_url": "http://d",
        "queue_urls": {"default": "http://q"},
        "slots": {"default": 4},
        "worker_role_arns": {"default": "arn:aws:iam::123456789012:role/worker"},
        "data": [],
    }
    outputs = {
        "control-plane": {"home_region": "us-east-1"},
        **{
            f"edge-{name}": {"region_name": name, **edge}
            for name in ("us-east-1", "eu-west-1", "ap-southeast-2")
        },
    }
    (directory / "outputs-home.json").write_text(json.dumps(outputs))
    return made


def test_deployment_keeps_the_order_of_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets are filled before the stack that starts tasks; the certificate goes to buckets that exist."""
    monkeypatch.setattr(deployment, "start_emulator", lambda _: False)
    ran = Ran()
    deployment.up(here(tmp_path), ran)
    steps = [
        next(
            word
            for word in command.split()
            if word in {"bootstrap", "foundation", "fill", "control-plane", "publish"}
            or word.startswith("edge-")
        )
        for command in ran.commands
    ]
    assert [
        "bootstrap",
        "bootstrap",
        "foundation",
        "fill",
        "control-plane",
        "edge-us-east-1",
        "publish",
    ] == steps


def test_destroying_stack_updates_catalogue(tmp_path: Path) -> None:
    """Destroying a stack removes its region from the catalogue, and touches neither the other stacks nor the emulator."""
    ran = Ran()
    deployment.destroy(here(tmp_path), ["edge-eu-west-1"], ran)
    assert ["npx --no-install cdktf destroy --auto-approve edge-eu-west-1"] == ran.commands
    assert 'name = "eu-west-1"' not in (tmp_path / "regions.toml").read_text()
    assert 'name = "us-east-1"' in (tmp_path / "regions.toml").read_text()


def test_removed_stacks_outputs_are_dropped(tmp_path: Path) -> None:
    """A region that was taken out of the file is not in the catalogue, whatever its last outputs were."""
    deployment.collect(here(tmp_path))
    assert {"control-plane", "edge-us-east-1", "edge-eu-west-1"} == json.loads(
        (tmp_path / "outputs.json").read_text()
    ).keys()


def test_unknown_stack_error_lists_stacks(tmp_path: Path) -> None:
    """The command is refused before anything is run."""
    ran = Ran()
    with pytest.raises(
        InfraError, match=r"no stack edge-mars; there are foundation, control-plane, edge-us-east-1"
    ):
        deployment.deploy(here(tmp_path), ["edge-mars"], ran)
    assert [] == ran.commands
