"""The policy's rules: default deny, what each key allows, and how a wrong file is explained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airbridge.control_plane import local, rules
from airbridge.control_plane.cli import app
from airbridge.control_plane.gateway.calls import ALIAS, Call, Denied, judge
from airbridge.control_plane.identity.access import worker_scopes
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.control_plane.policy import OWN, Access, TaskFacts
from airbridge.control_plane.rules import KEYS, OwnOnly, RulePolicy
from airbridge.executor.exceptions import ConfigurationError
from airbridge.executor.protocol import Record
from airbridge.executor.regions import Catalogue

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
xcoms.read = ["upstream"]
dag_runs = { read = ["upstream"], trigger = ["cleanup"] }
assets = { read = ["s3://in/*"], change = ["report", "s3://out/*"] }
"""
ACCESSES = {
    "queue": (Access("work:claim", "eu-west-1"), Access("work:claim", "us-east-1")),
    "connection": (Access("connections:read", "eu_db"), Access("connections:read", "us_db")),
    "variable": (Access("variables:read", "etl_x"), Access("variables:read", "other")),
    "write": (Access("variables:write", "etl_state_x"), Access("variables:write", "etl_x")),
    "xcoms": (Access("xcoms:read", "k", "upstream", "r"), Access("xcoms:read", "k", "secret", "r")),
    "runs": (Access("dag_runs:read", None, "upstream"), Access("dag_runs:read", None, "secret")),
    "states": (
        Access("task_instances:read", None, "upstream"),
        Access("task_instances:read", None, "secret"),
    ),
    "trigger": (Access("dag_runs:write", None, "cleanup"), Access("dag_runs:write", None, "upstream")),
    "asset": (Access("assets:read", uri="s3://in/a"), Access("assets:read", "report")),
    "change": (Access("assets:change", "x", uri="s3://out/a"), Access("assets:change", "x", uri="s3://in/a")),
}


def policy(text: str = POLICY) -> RulePolicy:
    return RulePolicy.parse(text.encode(), "/etc/airbridge/policy.toml")


@pytest.mark.parametrize("what", ACCESSES)
def test_a_rule_allows_what_it_names_and_nothing_else(what: str) -> None:
    """Each key allows the names it lists, in the regions, pools and DAGs of its rule; all else is denied."""
    allowed, denied = ACCESSES[what]
    ruling = policy().judge(TASK, allowed)
    assert (ruling.allowed, ruling.rule) == (True, "etl")
    assert not policy().judge(TASK, denied).allowed
    for elsewhere in ({"region": "us-east-1"}, {"pool": "gpu"}, {"dag_id": "other"}):
        assert not policy().judge(replace(TASK, **elsewhere), allowed).allowed, elsewhere


@pytest.mark.parametrize("what", ACCESSES)
def test_a_denial_names_the_rule_that_would_allow_it(what: str) -> None:
    """What the message says, put into the file, allows it; and the closest rule is named."""
    _, denied = ACCESSES[what]
    why = policy().judge(TASK, denied).why
    key = KEYS[denied.action]
    [name] = rules.names(key, denied)[:1]
    assert f"{key} = [\"{name}\"] in rule 'etl'" in why
    said = why.partition("[[rule]] of policy.toml with ")[2]
    fixed = POLICY + '[[rule]]\nname = "new"\n' + "\n".join(said.replace("], ", "]\n").splitlines())
    ruling = policy(fixed).judge(TASK, denied)
    assert (ruling.allowed, ruling.rule) == (True, "new")


@pytest.mark.parametrize("either", [RulePolicy((), "policy.toml", ""), OwnOnly()])
def test_without_a_rule_a_task_has_its_own(either: RulePolicy | OwnOnly) -> None:
    """Its state, its DAG's XComs and runs need no rule; triggering its own DAG does."""
    for action in ("task_instances:write", "xcoms:write"):
        assert either.judge(TASK, Access(action)).allowed
    for action in ("xcoms:read", "dag_runs:read", "task_instances:read"):
        assert either.judge(TASK, Access(action, "k", TASK.dag_id, "other-run")).rule == OWN
        assert not either.judge(TASK, Access(action, "k", "other", "run")).allowed
    assert not either.judge(TASK, Access("dag_runs:write", None, TASK.dag_id)).allowed


def test_without_a_file_work_is_claimed_and_nothing_more() -> None:
    """The default runs tasks, and a denial says that there is no file."""
    assert OwnOnly().judge(TASK, Access("work:claim", "eu-west-1")).allowed
    assert "policy_file is not set" in OwnOnly().judge(TASK, Access("connections:read", "x")).why


def test_local_mode_ships_a_policy_that_allows_everything() -> None:
    """On one machine for one user; the file is right and without a warning."""
    shipped = RulePolicy.read(Path(local.__file__).with_name("policy.toml"))
    assert list(rules.warnings(shipped)) == []
    for allowed, denied in ACCESSES.values():
        assert shipped.judge(TASK, allowed).allowed
        assert shipped.judge(TASK, denied).allowed


# --- Calls ---

SCOPES = Scopes.parse(worker_scopes(WorkerName("x", "eu-west-1", "default", "w1")))


def ask(
    method: str, path: str, query: str = "", body: object = None, own: tuple[str, ...] = ()
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
    return judge(record, TASK, SCOPES, policy(), lambda: own)


@pytest.mark.parametrize(
    ("method", "path", "query", "rule"),
    [
        ("GET", "connections/warehouse", "", "etl"),
        ("GET", "connections/other", "", None),
        ("GET", "connections/eu_/../other", "", "etl"),
        ("GET", "variables/etl_x", "", "etl"),
        ("DELETE", "variables/etl_x", "", None),
        ("PUT", "variables/etl_state_x", "", "etl"),
        ("GET", "xcoms/upstream/r/t/k", "", "etl"),
        ("GET", "xcoms/etl_daily/other/t/k", "", OWN),
        ("GET", "xcoms/etl_weekly/r/t/k", "", None),
        ("GET", "task-instances/count", "dag_id=secret", None),
        ("GET", "task-instances/count", "dag_id=etl_daily&dag_id=secret", None),
        ("GET", "dag-runs/count", "dag_id=upstream", "etl"),
        ("GET", "dag-runs/secret/r/state", "", None),
        ("POST", "dag-runs/cleanup/r", "", "etl"),
        ("POST", "dag-runs/upstream/r/clear", "", None),
        ("GET", "assets/by-uri", "uri=s3%3A%2F%2Fin%2Fa", "etl"),
        ("GET", "assets/by-uri", "uri=s3%3A%2F%2Fother", None),
        ("GET", "asset-events/by-asset", "name=x&uri=s3%3A%2F%2Fdeclared", OWN),
        ("GET", "asset-events/by-asset-alias", "name=mine", OWN),
        ("GET", "asset-events/by-asset-alias", "name=theirs", None),
        ("GET", "assets/by-name", "name=mine", None),
    ],
)
def test_calls_are_judged_by_the_policy(method: str, path: str, query: str, rule: str | None) -> None:
    """Every call that reaches beyond a task's own is by a rule, or denied; declared assets are its own."""
    answer = ask(method, path, query, own=("s3://declared", f"{ALIAS}mine"))
    assert (answer.rule if isinstance(answer, Call) else None) == rule, answer


@pytest.mark.parametrize(
    ("outlets", "events", "allowed"),
    [
        ([], [], True),
        ([{"name": "declared", "uri": "s3://declared", "type": "Asset"}], [], True),
        ([{"name": "x", "uri": "s3://out/x", "type": "Asset"}], [], True),
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
def test_a_final_state_changes_only_assets_that_are_declared_or_allowed(
    outlets: list[object], events: list[object], allowed: bool
) -> None:
    """What a task claims to have changed is held to its DAG's declaration and the policy; what cannot be read is denied."""
    body = {
        "state": "success",
        "end_date": "2026-01-01T00:00:00Z",
        "task_outlets": outlets,
        "outlet_events": events,
    }
    answer = ask("PATCH", "task-instances/{ti}/state", body=body, own=("s3://declared", f"{ALIAS}mine"))
    assert isinstance(answer, Call) == allowed
    assert not isinstance(answer, Denied) or answer.ends


# --- Files that are wrong ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = 1\n[[rule", "policy.toml: not TOML"),
        ("", "schema: is missing; it must be 1"),
        ("schema = 2", "schema: Input should be 1; it must be 1"),
        ("schema = 1\nrules = []", "rules: is not a key; the keys here are: schema, rule"),
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
            "rule names must differ; given twice: a",
        ),
    ],
)
def test_a_wrong_file_says_where_and_what_would_be_right(text: str, said: str) -> None:
    """Errors name file, rule and key, and what would be right."""
    with pytest.raises(ConfigurationError) as error:
        policy(text)
    assert f"/etc/airbridge/policy.toml: {said}" in str(error.value) or said in str(error.value)
    assert str(error.value).startswith("/etc/airbridge/policy.toml: ")


def test_regions_and_pools_are_checked_against_the_catalogue() -> None:
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
    """`policy check` names the rules; `policy explain` says by which rule, or which would, and exits 5 for no."""
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
