"""Generated environments: one to twelve regions, odd names, networks and prefixes that may collide."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.infra.conftest import read
from tests.infra.factories import DIGEST, environment, pool, region

from airbridge.infra import environment as environments
from airbridge.infra.app import wire
from airbridge.infra.cdk import App
from airbridge.infra.exceptions import EnvironmentFileError, UnsafeStackError
from airbridge.infra.stacks.base import Deployment
from airbridge.infra.validation import require_digest

# A synthesis of twelve regions takes seconds: more than two are for who has changed the names or the wiring.
SYNTHESES = int(os.environ.get("AIRBRIDGE_SYNTHESES", "2"))
REGIONS = [
    "ap-northeast-1", "ap-southeast-2", "ca-central-1", "eu-central-1", "eu-north-1", "eu-west-1",
    "il-central-1", "me-south-1", "sa-east-1", "us-east-1", "ap-south-1", "us-west-2",
]  # fmt: skip
odd_names = st.one_of(
    st.from_regex(r"[a-z][a-z0-9]{0,6}(-[a-z0-9]{1,5}){0,2}", fullmatch=True),
    st.text(max_size=12),
    st.sampled_from(["-dead-letters", "default--x", "UPPER", "ü", "", "a" * 40]),
)
names = st.one_of(st.sampled_from(REGIONS), odd_names)
cidrs = st.builds(
    lambda second, third: f"10.{second}.{third}.0/22",
    st.integers(0, 20),
    st.integers(0, 63).map(lambda n: n * 4),
)
prefixes = st.lists(
    st.sampled_from(["s3://data/a", "s3://data/a/b", "s3://data/c", "s3://other"]), max_size=2
)


@st.composite
def anything(draw: st.DrawFn) -> dict[str, Any]:
    """An environment that may well be wrong."""
    regions = [
        region(
            draw(names),
            draw(cidrs),
            data=draw(prefixes),
            pool=[pool(draw(odd_names)) for _ in range(draw(st.integers(1, 2)))],
        )
        for _ in range(draw(st.integers(1, 12)))
    ]
    return environment(region=regions)


@st.composite
def sound(draw: st.DrawFn) -> dict[str, Any]:
    """An environment that must be accepted."""
    count = draw(st.integers(1, 12))
    chosen = draw(st.permutations(REGIONS))[:count]
    pools = st.lists(
        st.from_regex(r"[a-z][a-z0-9]{0,6}(-[a-z0-9]{1,5}){0,1}", fullmatch=True),
        min_size=1,
        max_size=2,
        unique=True,
    )
    return environment(
        home_region=draw(st.sampled_from(chosen)),
        region=[
            region(
                name,
                f"10.{index + 1}.0.0/20",
                data=[f"s3://data/{index}"],
                pool=[pool(each) for each in draw(pools)],
            )
            for index, name in enumerate(chosen)
        ],
    )


@given(anything())
@settings(max_examples=150, deadline=None)
def test_environment_errors_name_their_key(data: dict[str, Any]) -> None:
    """Nothing but the two errors, every line of which names the file and a key or a region."""
    try:
        environments.parse(data, "test.toml")
    except (EnvironmentFileError, UnsafeStackError) as error:
        message = str(error)
    else:
        message = "test.toml: accepted"
    assert message.startswith("test.toml: ")


@given(st.text(max_size=90))
@settings(max_examples=300, deadline=None)
def test_image_needs_a_digest(image: str) -> None:
    """An accepted image ends in a digest and has no tag."""
    try:
        accepted = require_digest(image)
    except ValueError:
        return
    assert "@sha256:" in accepted
    assert ":" not in accepted.split("@")[0]


@given(sound())
@settings(max_examples=SYNTHESES, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_sound_environment_synthesises(tmp_path_factory: Any, data: dict[str, Any]) -> None:
    """One stack a region; names within AWS's limits; each queue is made once."""
    outdir: Path = tmp_path_factory.mktemp("sound")
    app = App(outdir=str(outdir))
    wire(app, Deployment(environments.parse(data, "test.toml")))
    app.synth()
    stacks = read(outdir)
    assert {
        "bootstrap",
        "foundation",
        "control-plane",
        *(f"edge-{each['name']}" for each in data["region"]),
    } == stacks.keys()
    for content in stacks.values():
        named = content["resource"]
        queues = [queue["name"] for queue in named.get("aws_sqs_queue", {}).values()]
        assert len(queues) == len(set(queues))
        assert all(len(name) <= 80 for name in queues)
        assert all(len(bucket["bucket"]) <= 63 for bucket in named.get("aws_s3_bucket", {}).values())
        assert all(len(role["name"]) <= 64 for role in named.get("aws_iam_role", {}).values())
        assert all(
            len(json.loads(one["policy"])["Statement"])
            for one in named.get("aws_iam_role_policy", {}).values()
        )


def test_factory_digest_is_valid() -> None:
    """The tests' own image passes."""
    assert f"w@sha256:{DIGEST}" == require_digest(f"w@sha256:{DIGEST}")
