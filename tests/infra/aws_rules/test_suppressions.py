"""Accepted findings of checkov: each reason is held against what the stacks have, as far as a test can."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.infra.conftest import ENVIRONMENTS, Stacks, read

from airbridge.infra.app import synthesise
from airbridge.infra.settings import Settings

REFERENCE = json.loads(Path(__file__).with_name("service_reference.json").read_text())["services"]
REPOSITORY = ENVIRONMENTS.parents[1]


def accepted(stacks: Stacks) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield path, check, reason and resource of every accepted finding."""
    for stack, content in stacks.items():
        for named in content["resource"].values():
            for resource in named.values():
                for check, reason in resource["//"].get("checkov", {}).items():
                    yield f"{stack}/{resource['//']['metadata']['path']}", check, reason, resource


def reasons(stacks: Stacks, check: str) -> dict[str, str]:
    return {path: reason for path, found, reason, _ in accepted(stacks) if found == check}


def test_reasons_cite_nothing_absent(prod: Stacks) -> None:
    """A reason names no protection that no stack makes: no trail, no access logs of the balancer, no tag as a boundary."""
    kinds = {kind for content in prod.values() for kind in content["resource"]}
    assert "aws_cloudtrail" not in kinds
    for path, _, reason, _ in accepted(prod):
        assert "is in CloudTrail" not in reason, path
        assert "tags" not in reason, path
    [(_, balancer)] = reasons(prod, "CKV2_AWS_28").items()
    assert "login" not in balancer
    [of_ui] = [reason for path, reason in reasons(prod, "CKV_AWS_91").items() if "/ui/" in path]
    assert "not logged" in of_ui


def test_pages_in_reasons_exist(prod: Stacks) -> None:
    """A page that a reason refers to is in the repository."""
    pages = [
        word.strip("().,;")
        for _, _, reason, _ in accepted(prod)
        for word in reason.split()
        if "docs/" in word
    ]
    assert pages
    for page in pages:
        path, _, anchor = page.partition("#")
        text = (REPOSITORY / path).read_text()
        headings = {
            line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")
        }
        assert not anchor or anchor in headings, page


def test_buckets_say_why_they_have_no_copy(prod: Stacks) -> None:
    """Snapshots are published to every region and the state is no region's data: "must not leave" is true of logs alone."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, reason in reasons(prod, "CKV_AWS_144").items():
        found["state" if path.startswith("bootstrap/") else path.split("/")[-2]].add(reason)
    assert {"state", "logs", "bundles"} == found.keys()
    assert ["logs"] == [
        bucket for bucket, texts in found.items() if any("must not leave" in text for text in texts)
    ]


def test_unlimited_actions_take_no_resource(prod: Stacks) -> None:
    """`Resource: "*"` of a platform's role is forced: by the service authorization reference none of its actions takes one."""
    checked = 0
    for stack, content in prod.items():
        for policy in content["resource"].get("aws_iam_role_policy", {}).values():
            for statement in json.loads(policy["policy"])["Statement"]:
                if statement["Effect"] != "Allow" or statement["Resource"] != "*":
                    continue
                actions = (
                    statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
                )
                for action in actions:
                    checked += 1
                    service, _, name = action.partition(":")
                    assert [] == REFERENCE[service][name][0], (
                        stack,
                        policy["//"]["metadata"]["path"],
                        action,
                    )
    assert checked


@pytest.mark.parametrize(
    ("networks", "words"), [('["10.0.0.0/8"]', "named networks"), ('["0.0.0.0/0"]', "every network")]
)
def test_public_ui_says_so(networks: str, words: str, tmp_path: Path) -> None:
    """An environment that opens the UI to everybody does not claim to name networks."""
    lines = (ENVIRONMENTS / "local.toml").read_text().splitlines()
    changed = [f"ui_cidrs = {networks}" if line.startswith("ui_cidrs") else line for line in lines]
    (tmp_path / "local.toml").write_text("\n".join(changed))
    stacks = read(synthesise(Settings("local", tmp_path), tmp_path / "out"))
    [(_, reason)] = reasons(stacks, "CKV2_AWS_28").items()
    assert words in reason
