"""Forty regions: synthesised in reasonable time, with every policy, task definition and name inside AWS's limits."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest
from tests.infra.aws_rules.test_compute import resources
from tests.infra.aws_rules.test_limits import LIMITS
from tests.infra.conftest import ENVIRONMENTS, Stacks, read
from tests.infra.task_files import main_container, regions

AREAS: Final = ("northeast", "southeast", "central", "south", "north", "east", "west", "southwest")
NAMES: Final = [f"ap-{area}-{number}" for area in AREAS for number in range(1, 6)]


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stacks, float]:
    """Stacks of an environment with forty regions, and the CPU time of `make synth` for it."""
    folder: Path = tmp_path_factory.mktemp("forty")
    text = (ENVIRONMENTS / "prod.toml").read_text().partition("[[region]]")[0]
    text = text.replace('home_region = "us-east-1"', f'home_region = "{NAMES[0]}"')
    text = text.replace('cidr = "10.48.0.0/18"', 'cidr = "10.200.0.0/18"')
    text += "".join(
        f'[[region]]\nname = "{name}"\ncidr = "10.{number}.0.0/20"\ndata = ["s3://example-{name}/warehouse"]\n'
        '[[region.pool]]\nname = "default"\ninstance_types = ["m7g.large"]\nslots = 4\nmax_instances = 4\n'
        for number, name in enumerate(NAMES, start=1)
    )
    (folder / "prod.toml").write_text(text)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = ["--directory", str(folder), "--out", str(folder / "out"), "prod"]
    subprocess.run([sys.executable, "-m", "airbridge.infra.synth", *options], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return read(folder / "out" / "prod"), spent


def test_every_region_has_its_stack(forty: tuple[Stacks, float]) -> None:
    """Forty regions, the control plane, the foundation and the bootstrap; the CPU time is printed, its JavaScript included."""
    stacks, spent = forty
    print(f"\nsynthesis of 43 stacks: {spent:.1f} s of a CPU")
    assert 43 == len(stacks)


def test_policies_of_a_role_fit(forty: tuple[Stacks, float]) -> None:
    """All inline policies of a role have 10,240 characters, without white space; a managed one has 6,144.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
    """
    stacks, _ = forty
    inline: dict[str, int] = defaultdict(int)
    for path, one in resources(stacks, "aws_iam_role_policy"):
        name = one["role"]
        if "${" in name:
            name = f"{path.split('/')[0]}/{name}"
        inline[_role(stacks, name)] += len(json.dumps(json.loads(one["policy"]), separators=(",", ":")))
    assert {role: size for role, size in inline.items() if size > 10_240} == {}
    for path, one in resources(stacks, "aws_iam_policy"):
        assert len(json.dumps(json.loads(one["policy"]), separators=(",", ":"))) <= 6_144, path


def _role(stacks: Stacks, name: str) -> str:
    """Return a role's name in AWS, of a reference in a stack or of the name itself."""
    if "${" not in name:
        return name
    stack, _, reference = name.partition("/")
    key = reference.removeprefix("${aws_iam_role.").removesuffix(".name}")
    return str(stacks[stack]["resource"]["aws_iam_role"][key]["name"])


SERVICES: Final = ("api-server", "scheduler", "dag-processor", "triggerer", "gateway", "operator")


@pytest.mark.parametrize("service", SERVICES)
def test_definition_has_its_own_catalogue(forty: tuple[Stacks, float], service: str) -> None:
    """A revision has the whole catalogue that it was made with: nothing that a later deployment changes, cuts or deletes."""
    stacks, _ = forty
    main = main_container(stacks, service)
    assert not [one for one in main["secrets"] if ":parameter/" in one["valueFrom"]]
    found = tomllib.loads(regions(stacks, service))
    assert sorted(NAMES) == [region["name"] for region in found["region"]]
    assert all(region["pool"][0]["role_arn"] for region in found["region"])


def test_definitions_fit(forty: tuple[Stacks, float]) -> None:
    """A task definition has 64 KiB.

    https://docs.aws.amazon.com/AmazonECS/latest/developerguide/service-quotas.html
    """
    stacks, _ = forty
    sizes = {
        one["family"]: len(one["container_definitions"].encode())
        for _, one in resources(stacks, "aws_ecs_task_definition")
    }
    print(f"\nthe largest task definition: {max(sizes.values())} bytes")
    assert {name: size for name, size in sizes.items() if size > 65_536} == {}


@pytest.mark.parametrize("cut", [0, 40, 1])
def test_cut_catalogue_stops_the_task(forty: tuple[Stacks, float], tmp_path: Path, cut: int) -> None:
    """The command of a task writes the catalogue as it was, and does not go on with one that is not whole."""
    stacks, _ = forty
    main = main_container(stacks, "scheduler")
    variables = {each["name"]: each["value"] for each in main["environment"]}
    packed = variables["AIRBRIDGE_FILE_REGIONS_TOML"]
    kept = packed[: len(packed) - 4 * cut]
    shell, option, script, *_ = main["command"]
    script = script.replace("/run/airbridge", str(tmp_path))
    done = subprocess.run(
        [shell, option, script, "sh", "echo", "started"],
        env={**os.environ, **variables, "PATH": os.environ["PATH"], "AIRBRIDGE_FILE_REGIONS_TOML": kept},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0, done.stdout == "started\n") == (cut == 0, cut == 0), done.stderr
    if cut == 0:
        assert regions(stacks) == (tmp_path / "regions.toml").read_text()


def test_names_fit(forty: tuple[Stacks, float]) -> None:
    """No name is too long, and none is given twice."""
    stacks, _ = forty
    for kind, (attribute, limit) in LIMITS.items():
        for path, one in resources(stacks, kind):
            assert len(one[attribute]) <= limit, path


def test_replication_has_few_destinations(forty: tuple[Stacks, float]) -> None:
    """A registry replicates to 25 destinations; the others need a copy by digest.

    https://docs.aws.amazon.com/AmazonECR/latest/userguide/replication.html
    """
    stacks, _ = forty
    [(_, one)] = resources(stacks, "aws_ecr_replication_configuration")
    assert 25 == len(_destinations(one))


def _destinations(configuration: dict[str, Any]) -> list[str]:
    rules = configuration["replication_configuration"]["rule"]
    return [each["region"] for rule in rules for each in rule["destination"]]


def test_rules_of_a_group_fit(forty: tuple[Stacks, float]) -> None:
    """A security group has 60 rules in each direction."""
    stacks, _ = forty
    count: dict[str, int] = defaultdict(int)
    for path, one in resources(stacks, "aws_vpc_security_group_ingress_rule"):
        count[f"{path.split('/')[0]}/{one['security_group_id']}"] += 1
    assert max(count.values()) <= 60
