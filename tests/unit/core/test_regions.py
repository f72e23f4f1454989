"""The region catalogue, and its error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.executor.catalogues import TOML, catalogue

from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.hints import near


def test_a_catalogue_is_read() -> None:
    """Regions, pools and the home region are as the file has them."""
    read = catalogue()
    assert read.names == ("us-east-1", "eu-west-1")
    assert read.home.name == "us-east-1"
    europe = read.region("eu-west-1")
    assert europe is not None
    gpu = europe.pool("gpu")
    assert gpu is not None
    assert gpu.queue_url == "http://127.0.0.1:5000/1/eu-gpu"


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("s3://us-data", ["us-east-1"]),
        ("s3://us-data/2026/x.csv", ["us-east-1"]),
        ("s3://eu-data/x", ["eu-west-1"]),
        ("s3://us-data-too", []),
        ("s3://shared/both/x", ["us-east-1", "eu-west-1"]),
        ("s3://shared/eu", ["eu-west-1"]),
        ("s3://shared", []),
        ("gs://us-data", []),
    ],
)
def test_data_is_found_by_its_prefix(uri: str, names: list[str]) -> None:
    """The longest matching entry decides on the regions of data, by whole path segments; several if it is replicated."""
    assert [region.name for region in catalogue().regions_with(uri)] == names


def test_the_longest_prefix_wins() -> None:
    """A more exact entry of one region overrides a shorter one of another."""
    text = TOML.replace('"s3://us-data"', '"s3://us-data", "s3://shared"')
    regions = Catalogue.parse(text).regions_with("s3://shared/eu/file")
    assert [region.name for region in regions] == ["eu-west-1"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('home_region = "us-east-1"', 'home_region = "mars-1"', "home_region is 'mars-1'; it must be one of us-east-1, eu-west-1"),
        ('name = "eu-west-1"', 'name = "us-east-1"', "region 'us-east-1' is there twice"),
        ('name = "eu-west-1"', 'name = "EU West"', "region 'EU West', name: must be 1 to 63 lower-case letters, digits and hyphens, and begin and end with a letter or digit, such as factory-7"),
        ('log_bucket = "eu-logs"', "", "region 'eu-west-1', log_bucket: Field required"),
        ('log_bucket = "eu-logs"', 'log_buket = "eu-logs"', "log_bucket: Field required"),
        ('"http://127.0.0.1:5000/1/us"', '"us"', "pool number 1, queue_url: Value error, must be a URL"),
        ('/1/eu-gpu"', '/1/eu"', "'http://127.0.0.1:5000/1/eu' serves two pools"),
        ('name = "gpu"', 'name = "default"', "region 'eu-west-1' has pool 'default' twice"),
        ('"s3://us-data"', '"us-data"', "must be a URI such as s3://bucket"),
        ("home_region", "home region", "is not TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    """The error names the file, the entry and what would be right."""
    assert old in TOML
    with pytest.raises(ConfigurationError) as caught:
        Catalogue.parse(TOML.replace(old, new), source="regions.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("regions.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error names the file and the setting."""
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml cannot be read: .*regions_file"):
        Catalogue.read(tmp_path / "nowhere.toml")


def test_emulated_regions_share_an_address() -> None:
    """One emulator serves the queues of all regions at one address; within a region they still differ."""
    endpoint = 'endpoint_url = "http://127.0.0.1:5000"\n'
    text = TOML.replace('log_bucket = "', endpoint + 'log_bucket = "').replace("/1/us", "/1/eu")
    assert Catalogue.parse(text).names == ("us-east-1", "eu-west-1")
    with pytest.raises(ConfigurationError, match="serves two pools"):
        Catalogue.parse(text.replace("/1/eu-gpu", "/1/eu"))


TEAMS = """
[[team]]
name = "finance"
bundles = ["finance-dags", "ledger-dags"]
weight = 2.5
[team.quota]
"eu-west-1" = 4
"gpu@eu-west-1" = 1

[[team]]
name = "default"
weight = 0.5
"""


def test_bundles_belong_to_teams() -> None:
    """A bundle is its team's; all that no team names are those of the default team, whose weight may be set."""
    found = Catalogue.parse(TOML + TEAMS)
    assert [found.team_of(each) for each in ("ledger-dags", "other")] == ["finance", "default"]
    assert [(team.name, team.weight) for team in found.teams] == [("finance", 2.5), ("default", 0.5)]
    assert catalogue().team_of("ledger-dags") == "default"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "finance"', 'name = "default"', "team 'default' is there twice"),
        ('name = "default"', 'name = "others"', "team 'others' has no bundles"),
        ('"ledger-dags"', '"finance-dags"', "bundle 'finance-dags' is in two teams, or twice in one"),
        ("weight = 2.5", "weight = 0", "team 'finance', weight: Input should be greater than or equal to 0.001"),
        ("weight = 2.5", "weight = nan", "team 'finance', weight: Input should be"),
        ("weight = 2.5", "wait = 2", "team 'finance', wait: Extra inputs are not permitted"),
        ('"eu-west-1" = 4', '"eu-west-1" = 0', "quota, eu-west-1: Input should be greater than or equal to 1"),
        ('"gpu@eu-west-1"', '"gpu@us-east-1"', "team 'finance', quota 'gpu@us-east-1': region 'us-east-1' has no pool 'gpu'"),
        ('"gpu@eu-west-1"', '"mars-1"', "team 'finance', quota 'mars-1': there is no region 'mars-1'"),
        ('"gpu@eu-west-1"', '"default@eu-west-1"', "two quotas for pool 'default' of region 'eu-west-1'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_team_is_named(old: str, new: str, message: str) -> None:
    """The error names the team and what would be right."""
    assert old in TEAMS
    with pytest.raises(ConfigurationError) as caught:
        Catalogue.parse(TOML + TEAMS.replace(old, new), source="regions.toml")
    assert message in str(caught.value)


FREE = """
home_region = "eu-central-1"

[[region]]
name = "eu-central-1"
log_bucket = "home-logs"
bundle_bucket = "home-dags"
[[region.pool]]
queue_url = "https://sqs.eu-central-1.amazonaws.com/1/home"

[[region]]
name = "factory-7"
transport = "gateway"
log_bucket = "factory-logs"
bundle_bucket = "factory-dags"
data = ["file:///data/press", "jdbc:postgresql://plc.factory/line", "gs://factory", "abfss://raw@factory.dfs.core.windows.net"]
[[region.pool]]
queue_url = "https://sqs.eu-central-1.amazonaws.com/1/factory"
[[region.pool]]
name = "cloud"
transport = "direct"
queue_url = "https://sqs.eu-central-1.amazonaws.com/1/cloud"

[[region]]
name = "gcp-europe-west4"
aws_region = "eu-west-1"
log_bucket = "gcp-logs"
bundle_bucket = "gcp-dags"
[[region.pool]]
queue_url = "https://sqs.eu-west-1.amazonaws.com/1/gcp"
"""


def test_free_names_have_queues_in_aws() -> None:
    """A region with a free name has its queues where `aws_region` says; through the gateway, beside the home region's."""
    read = Catalogue.parse(FREE)
    assert {region.name: region.aws for region in read.regions} == {
        "eu-central-1": "eu-central-1",
        "factory-7": "eu-central-1",
        "gcp-europe-west4": "eu-west-1",
    }


def test_transport_of_pool_overrides_region() -> None:
    """A pool has its region's transport, unless it names another; regions are direct if they say nothing."""
    transports = {
        f"{pool.name}@{region.name}": region.transport_of(pool)
        for region, pool in Catalogue.parse(FREE).places()
    }
    assert transports == {
        "default@eu-central-1": "direct",
        "default@factory-7": "gateway",
        "cloud@factory-7": "direct",
        "default@gcp-europe-west4": "direct",
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('aws_region = "eu-west-1"\n', "", "region 'gcp-europe-west4': .* is not an AWS region's, .* set aws_region"),
        ('aws_region = "eu-west-1"', 'aws_region = "europe"', "aws_region: Value error, 'europe' is no AWS region"),
        ('name = "gcp-europe-west4"\naws_region = "eu-west-1"', 'name = "eu-wset-1"', "region 'eu-wset-1': .* correct the name"),
        ('transport = "gateway"', 'transport = "pigeon"', "region 'factory-7', transport: Input should be 'direct' or 'gateway'"),
        ('"gs://factory"', '"factory"', "data number 3: Value error, must be a URI such as .* jdbc:postgresql"),
    ],
)  # fmt: skip
def test_bad_places_are_refused(old: str, new: str, message: str) -> None:
    """A place without queues, or an unknown word, is refused with its name and what would be right."""
    with pytest.raises(ConfigurationError, match=message):
        Catalogue.parse(FREE.replace(old, new))


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("file:///data/press/2026.csv", ["factory-7"]),
        ("file:///data/pressure.csv", []),
        ("jdbc:postgresql://plc.factory/line?user=x", ["factory-7"]),
        ("jdbc:postgresql://plc.factory/line2", []),
        ("gs://factory/raw", ["factory-7"]),
        ("abfss://raw@factory.dfs.core.windows.net/2026", ["factory-7"]),
    ],
)
def test_data_of_any_scheme_is_found(uri: str, names: list[str]) -> None:
    """Data on a disk, in a database or in another cloud belongs to the region whose entry is its prefix."""
    assert [region.name for region in Catalogue.parse(FREE).regions_with(uri)] == names
    assert near(uri)["airbridge"]["near"] == [uri]
