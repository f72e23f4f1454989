"""The policy's rules: default deny, what each key allows, and how a wrong file is explained."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airbridge.control_plane import local
from airbridge.control_plane.cli import app
from airbridge.control_plane.gateway.auth.task_permissions import Call, Denied, judge
from airbridge.control_plane.gateway.validation.bodies import Bodies
from airbridge.control_plane.gateway.validation.triggers import TriggerClasses
from airbridge.control_plane.identity.access import worker_scopes
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.control_plane.policy import rules
from airbridge.control_plane.policy.decisions import DEFINE, OWN, Access, AssetRef, TaskFacts
from airbridge.control_plane.policy.rules import KEYS, OwnOnly, RulePolicy
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import Record

TASK = TaskFacts(
    "00000000-0000-0000-0000-000000000001",
    "00000000-0000-0000-0000-00000000000a",
    "etl_daily",
    "run",
    "load",
    -1,
    "eu-west-1",
    "default",
    "w1",
    "eu-west-1",
)
POLICY = """
schema = 1

[[rule]]
name = "etl"
regions = ["eu-*"]
pools = ["default"]
dags = ["etl_*"]
queues.claim = ["eu-*"]
connections.read = ["warehouse", "eu_*"]
variables = { read = ["etl_*"], write = ["etl_state_*"] }
xcoms = { read = ["upstream"], from_regions = ["us-*"] }
dag_runs = { read = ["upstream"], trigger = ["cleanup"] }
assets = { read = ["s3://in/*"], change = ["report", "s3://out/*"] }
"""
ACCESSES = {
    "queue": (Access("work:claim", "eu-west-1"), Access("work:claim", "us-east-1")),
    "connection": (Access("connections:read", "eu_db"), Access("connections:read", "us_db")),
    "variable": (Access("variables:read", "etl_x"), Access("variables:read", "other")),
    "write": (Access("variables:write", "etl_state_x"), Access("variables:write", "etl_x")),
    "xcoms": (Access("xcoms:read", "k", "upstream", "r"), Access("xcoms:read", "k", "secret", "r")),
    "abroad": (Access("xcoms:from_region", "us-east-1"), Access("xcoms:from_region", "mars-1")),
    "runs": (Access("dag_runs:read", None, "upstream"), Access("dag_runs:read", None, "secret")),
    "states": (
        Access("task_instances:read", None, "upstream"),
        Access("task_instances:read", None, "secret"),
    ),
    "trigger": (Access("dag_runs:write", None, "cleanup"), Access("dag_runs:write", None, "upstream")),
    "asset": (Access("assets:read", uri="s3://in/a"), Access("assets:read", "report")),
    "change": (
        Access("assets:change", "report", uri="s3://out/a"),
        Access("assets:change", "report", uri="s3://in/a"),
    ),
}


def policy(text: str = POLICY) -> RulePolicy:
    return RulePolicy.parse(text.encode(), "/etc/airbridge/policy.toml")


@pytest.mark.parametrize("what", ACCESSES)
def test_rule_allows_only_listed_names(what: str) -> None:
    """Each key allows the names it lists, in the regions, pools and DAGs of its rule; all else is denied."""
    allowed, denied = ACCESSES[what]
    ruling = policy().judge(TASK, allowed)
    assert (ruling.allowed, ruling.rule) == (True, "etl")
    assert not policy().judge(TASK, denied).allowed
    for elsewhere in ({"region": "us-east-1"}, {"pool": "gpu"}, {"dag_id": "other"}):
        assert not policy().judge(replace(TASK, **elsewhere), allowed).allowed, elsewhere


@pytest.mark.parametrize("what", ACCESSES)
def test_denial_suggests_allowing_rule(what: str) -> None:
    """The rule in the denial's message, added to the file, allows the access; the closest existing rule is named."""
    _, denied = ACCESSES[what]
    why = policy().judge(TASK, denied).why
    key = KEYS[denied.action]
    [name] = rules.names(key, denied)[-1:]
    assert f"{key} = [\"{name}\"] in rule 'etl'" in why
    said = why.partition("[[rule]] of policy.toml with ")[2]
    fixed = POLICY + '[[rule]]\nname = "new"\n' + "\n".join(said.replace("], ", "]\n").splitlines())
    ruling = policy(fixed).judge(TASK, denied)
    assert ruling.allowed
    assert "new" in ruling.rule.split(", ")


@pytest.mark.parametrize("either", [RulePolicy((), "policy.toml", ""), OwnOnly()])
def test_own_resources_need_no_rule(either: RulePolicy | OwnOnly) -> None:
    """Its state, its DAG's XComs and runs need no rule; triggering its own DAG does."""
    for action in ("task_instances:write", "xcoms:write"):
        assert either.judge(TASK, Access(action)).allowed
    for action in ("xcoms:read", "dag_runs:read", "task_instances:read"):
        assert either.judge(TASK, Access(action, "k", TASK.dag_id, "other-run")).rule == OWN
        assert not either.judge(TASK, Access(action, "k", "other", "run")).allowed
    assert not either.judge(TASK, Access("dag_runs:write", None, TASK.dag_id)).allowed


def test_no_file_allows_claims_only() -> None:
    """The default policy allows claims only, and a denial reports that no file is configured."""
    assert OwnOnly().judge(TASK, Access("work:claim", "eu-west-1")).allowed
    assert "policy_file is not set" in OwnOnly().judge(TASK, Access("connections:read", "x")).why


def test_local_policy_allows_everything() -> None:
    """On one machine for one user; the file is right and without a warning."""
    shipped = RulePolicy.read(Path(local.__file__).with_name("policy.toml"))
    assert list(rules.warnings(shipped)) == []
    for allowed, denied in ACCESSES.values():
        assert shipped.judge(TASK, allowed).allowed
        assert shipped.judge(TASK, denied).allowed


# --- Calls ---

SCOPES = Scopes.parse(worker_scopes(WorkerName("x", "eu-west-1", "default", "w1")))


def ask(
    method: str, path: str, query: str = "", body: object = None, own: tuple[AssetRef, ...] = ()
) -> Call | Denied:
    record = Record.model_validate(
        {
            "item_id": TASK.item_id,
            "epoch": 1,
            "seq": 1,
            "method": method,
            "path": path.replace("{ti}", TASK.ti_id),
            "query": query,
            "body": json.dumps(body) if body is not None else None,
            "recorded_at": "2026-01-01T00:00:00Z",
        }
    )
    return judge(record, TASK, SCOPES, policy(), bodies=BODIES, own_assets=lambda: own)


BODIES = Bodies(TriggerClasses(frozenset({"acme.triggers.OrderTrigger"})))
DECLARED = (AssetRef("declared", "s3://declared"), AssetRef("mine", alias=True), AssetRef("by-name"))


@pytest.mark.parametrize(
    ("method", "path", "query", "rule"),
    [
        ("GET", "connections/warehouse", "", "etl"),
        ("GET", "connections/other", "", None),
        ("GET", "connections/eu_/../other", "", "etl"),
        ("GET", "variables/etl_x", "", "etl"),
        ("DELETE", "variables/etl_x", "", None),
        ("GET", "xcoms/upstream/r/t/k", "", "etl"),
        ("GET", "xcoms/etl_daily/other/t/k", "", OWN),
        ("GET", "xcoms/etl_weekly/r/t/k", "", None),
        ("GET", "task-instances/count", "dag_id=secret", None),
        ("GET", "task-instances/count", "dag_id=etl_daily&dag_id=secret", None),
        ("GET", "dag-runs/count", "dag_id=upstream", "etl"),
        ("GET", "dag-runs/secret/r/state", "", None),
        ("POST", "dag-runs/upstream/r/clear", "", None),
        ("GET", "assets/by-uri", "uri=s3%3A%2F%2Fin%2Fa", "etl"),
        ("GET", "assets/by-uri", "uri=s3%3A%2F%2Fother", None),
        ("GET", "asset-events/by-asset", "name=declared&uri=s3%3A%2F%2Fdeclared", OWN),
        ("GET", "asset-events/by-asset", "name=&uri=s3%3A%2F%2Fdeclared", OWN),
        ("GET", "asset-events/by-asset", "name=declared", OWN),
        ("GET", "asset-events/by-asset", "name=x&uri=s3%3A%2F%2Fdeclared", None),
        ("GET", "asset-events/by-asset", "name=declared&uri=s3%3A%2F%2Fsecret", None),
        ("GET", "asset-events/by-asset", "name=by-name&uri=s3%3A%2F%2Fsecret", None),
        ("GET", "assets/by-name", "name=secret&uri=s3%3A%2F%2Fdeclared", None),
        ("GET", "assets/by-name", "name=by-name", OWN),
        ("GET", "assets/by-uri", "name=declared&uri=s3%3A%2F%2Fsecret", None),
        ("GET", "asset-events/by-asset-alias", "name=mine", OWN),
        ("GET", "asset-events/by-asset-alias", "name=theirs", None),
        ("GET", "assets/by-name", "name=mine", None),
    ],
)
def test_calls_are_judged_by_the_policy(method: str, path: str, query: str, rule: str | None) -> None:
    """Every call that reaches beyond a task's own is by a rule, or denied; declared assets are its own."""
    answer = ask(method, path, query, own=DECLARED)
    assert (answer.rule if isinstance(answer, Call) else None) == rule, answer


@pytest.mark.parametrize(
    ("outlets", "events", "allowed"),
    [
        ([], [], True),
        ([{"name": "declared", "uri": "s3://declared", "type": "Asset"}], [], True),
        ([{"name": "s3://out/x", "uri": "s3://out/x", "type": "Asset"}], [], True),
        ([{"name": "report", "uri": "s3://out/x", "type": "Asset"}], [], True),
        ([{"name": "x", "uri": "s3://out/x", "type": "Asset"}], [], False),
        ([{"name": "declared", "uri": "s3://out/x", "type": "Asset"}], [], False),
        ([{"name": "payroll", "uri": "s3://declared", "type": "Asset"}], [], False),
        ([{"name": "payroll", "uri": "s3://declared", "type": "AssetNameRef"}], [], False),
        ([{"name": "declared", "uri": None, "type": "AssetNameRef"}], [], True),
        ([{"name": "declared", "type": "Asset"}], [], False),
        ([{"name": "report", "type": "Dataset"}], [], False),
        ([{"name": "theirs", "type": "AssetAlias"}], [], False),
        ([{"name": "x", "uri": "s3://secret", "type": "Asset"}], [], False),
        ([{"name": "secret", "uri": None, "type": "AssetNameRef"}], [], False),
        ([{"name": "mine", "type": "AssetAlias"}], [], True),
        (
            [{"name": "mine", "type": "AssetAlias"}],
            [
                {
                    "dest_asset_key": {"name": "x", "uri": "s3://secret"},
                    "source_alias_name": "mine",
                    "extra": {},
                }
            ],
            False,
        ),
        (
            [{"name": "x", "uri": "s3://secret", "type": "Asset"}],
            [{"source_alias_name": "mine", "extra": {}}],
            False,
        ),
        (["x"], [], False),
    ],
)
def test_final_state_asset_changes_are_checked(
    outlets: list[object], events: list[object], allowed: bool
) -> None:
    """Asset changes that a task reports are checked against its DAG's declaration and the policy; unreadable ones are denied."""
    body = {
        "state": "success",
        "end_date": datetime.now(UTC).isoformat(),
        "task_outlets": outlets,
        "outlet_events": events,
    }
    answer = ask("PATCH", "task-instances/{ti}/state", body=body, own=DECLARED)
    assert isinstance(answer, Call) == allowed
    assert not isinstance(answer, Denied) or answer.fails


def test_asset_name_and_uri_need_rules() -> None:
    """An asset's name and URI may be allowed by two rules; one of them alone is not enough."""
    pair = Access("assets:change", "orders", uri="s3://out/orders")
    assert not policy().judge(TASK, pair).allowed
    assert 'assets.change = ["orders"] in rule' in policy().judge(TASK, pair).why
    neither = Access("assets:change", "orders", uri="s3://other/orders")
    assert 'assets.change = ["orders", "s3://other/orders"] in rule' in policy().judge(TASK, neither).why
    second = POLICY + '\n[[rule]]\nname = "orders"\ndags = ["*"]\nassets.change = ["orders"]\n'
    assert policy(second).judge(TASK, pair).allowed


@pytest.mark.parametrize(
    ("kwargs", "rule"),
    [
        ({}, OWN),
        ({"conn_id": "warehouse"}, OWN),
        ({"aws_conn_id": "eu_x"}, OWN),
        ({"conn_id": "payroll"}, None),
        ({"hooks": {"__type": "dict", "__var": {"http_conn_id": "payroll"}}}, None),
        ({"conn_id": ["payroll"]}, None),
    ],
)
def test_trigger_reaches_what_its_task_may(kwargs: dict[str, object], rule: str | None) -> None:
    """The triggerer gives a trigger any connection, so the policy judges each one that its kwargs name."""
    body = {
        "state": "deferred",
        "classpath": "acme.triggers.OrderTrigger",
        "trigger_kwargs": {"__type": "dict", "__var": kwargs},
        "next_method": "resume",
    }
    answer = ask("PATCH", "task-instances/{ti}/state", body=body)
    assert (answer.rule if isinstance(answer, Call) else None) == rule, answer


BUNDLES = """
schema = 1
[[bundle]]
name = "team-a"
dags = ["etl_*"]
[[rule]]
name = "a"
bundles = ["team-a"]
dags = ["*"]
connections.read = ["a"]
"""


def test_bundle_rule_covers_own_tasks_only() -> None:
    """A rule may name the bundle that defines the DAG; the DAG id alone is not enough then."""
    asked = Access("connections:read", "a")
    assert policy(BUNDLES).judge(replace(TASK, bundle="team-a"), asked).allowed
    assert not policy(BUNDLES).judge(replace(TASK, bundle="team-b"), asked).allowed


def test_dag_is_defined_by_its_bundle() -> None:
    """A DAG id that a bundle lists may be defined by that bundle only; other ids have no owner."""
    allowed = policy(BUNDLES).judge(replace(TASK, bundle="team-a"), Access(DEFINE))
    denied = policy(BUNDLES).judge(replace(TASK, bundle="team-b"), Access(DEFINE))
    other = policy(BUNDLES).judge(replace(TASK, dag_id="other", bundle="team-b"), Access(DEFINE))
    assert (True, "bundle team-a") == (allowed.allowed, allowed.rule)
    assert not denied.allowed
    assert "'team-a', not of 'team-b'" in denied.why
    assert (True, OWN) == (other.allowed, other.rule)


# --- Files that are wrong ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = 1\n[[rule", "policy.toml: not TOML"),
        ("", "schema: is missing; it must be 1"),
        ("schema = 2", "schema: Input should be 1; it must be 1"),
        ("schema = 1\nrules = []", "rules: is not a key; the keys here are: schema, bundle, rule"),
        (
            'schema = 1\n[[rule]]\ndags = ["x"]',
            "rule 1: name: is missing; it must be a name of the rule's own",
        ),
        ('schema = 1\n[[rule]]\nname = "a"', "rule 1 ('a'): dags: is missing; it must be a list of DAG ids"),
        ('schema = 1\n[[rule]]\nname = "A b"\ndags = ["x"]', "rule 1 ('A b'): name: must match"),
        (
            'schema = 1\n[[rule]]\nname = "a"\ndags = ["x"]\nconections.read = ["y"]',
            "rule 1 ('a'): conections: is not a key; the keys here are: name, comment, regions",
        ),
        (
            'schema = 1\n[[rule]]\nname = "a"\ndags = ["x"]\nconnections.write = ["y"]',
            "rule 1 ('a'): connections.write: is not a key; the keys here are: read",
        ),
        (
            'schema = 1\n[[rule]]\nname = "a"\ndags = ["x"]\nconnections.read = "y"',
            "rule 1 ('a'): connections.read: Input should be a valid tuple",
        ),
        ('schema = 1\n[[rule]]\nname = "a"\ndags = []', "rule 1 ('a'): dags:"),
        ("schema = 1\nrule = 3", "rule: Input should be a valid tuple"),
        (
            'schema = 1\n[[rule]]\nname = "a"\ndags = ["x"]\n[[rule]]\nname = "a"\ndags = ["y"]',
            "rule names must be unique; duplicates: a",
        ),
    ],
)
def test_policy_file_errors_are_located(text: str, said: str) -> None:
    """Errors name file, rule and key, and what would be right."""
    with pytest.raises(ConfigurationError) as error:
        policy(text)
    assert f"/etc/airbridge/policy.toml: {said}" in str(error.value) or said in str(error.value)
    assert str(error.value).startswith("/etc/airbridge/policy.toml: ")


def test_unknown_regions_are_reported() -> None:
    """A rule for a region that there is not is found, with those that there are."""
    catalogue = Catalogue.parse(
        'home_region = "eu-west-1"\n[[region]]\nname = "eu-west-1"\nlog_bucket = "a"\nbundle_bucket = "b"\n'
        '[[region.pool]]\nqueue_url = "http://x"\n'
    )
    assert list(rules.unknown_places(policy(), catalogue)) == []
    [wrong] = rules.unknown_places(policy(POLICY.replace("eu-*", "mars-1", 1)), catalogue)
    assert "rule 'etl': regions: 'mars-1' matches nothing; the catalogue has eu-west-1" in wrong


def airbridge(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app.build(), ["policy", *words])
    return result.exit_code, result.stdout


def test_the_command_line_checks_and_explains(tmp_path: Path) -> None:
    """`policy check` lists the rules; `policy explain` names the rule that allows, or that would, and exits 5 on a denial."""
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    code, said = airbridge("check", "--file", str(path), "--json")
    assert (code, json.loads(said)["rules"]) == (0, ["etl"])
    asked = ("explain", "--file", str(path), "--region", "eu-west-1", "--dag", "etl_daily")
    code, said = airbridge(*asked, "--connection", "eu_db")
    assert (code, said.splitlines()[0]) == (0, "allowed by rule 'etl'")
    code, said = airbridge(*asked, "--trigger", "other", "--json")
    assert code == 5
    assert json.loads(said)["rules"] == [
        {"rule": "etl", "allows": False, "why": "dag_runs.trigger = ['cleanup'] does not match 'other'"}
    ]
