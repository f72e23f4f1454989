"""The synthesised stacks, read from the JSON for Terraform."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.infra import task_files
from tests.infra.conftest import ENVIRONMENTS, Stacks, read

from airbridge.infra import catalogue, service_secrets
from airbridge.infra import environment as environments
from airbridge.infra.app import synthesise
from airbridge.infra.exceptions import EnvironmentFileError
from airbridge.infra.settings import Settings

STATEFUL = {
    "aws_db_instance",
    "aws_ecr_repository",
    "aws_kms_key",
    "aws_s3_bucket",
    "aws_secretsmanager_secret",
    "aws_sqs_queue",
}


def resources(stacks: Stacks, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for stack, content in stacks.items():
        for resource in content.get("resource", {}).get(kind, {}).values():
            yield f"{stack}/{resource['//']['metadata']['path']}", resource


def observed() -> dict[str, Any]:
    """Return the control plane's definition of alarms and charts."""
    text = (ENVIRONMENTS.parent / "src" / "airbridge" / "infra" / "observability.json").read_text()
    return json.loads(text)  # type: ignore[no-any-return]  # an object


def planned(resource: dict[str, Any]) -> dict[str, Any]:
    """Without what no plan compares: provisioners, whose path to Python depends on the output directory, and an order."""
    return {key: value for key, value in resource.items() if key not in {"provisioner", "depends_on"}}


def policies(stacks: Stacks) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every statement of every IAM policy."""
    for path, resource in resources(stacks, "aws_iam_role_policy"):
        for statement in json.loads(resource["policy"])["Statement"]:
            yield path, statement


def test_added_region_changes_named_wiring(local: Stacks, tmp_path: Path) -> None:
    """One entry more: one stack more, and in the control plane the things that its docstring names."""
    entry = '\n[[region]]\nname = "us-west-2"\ncidr = "10.3.0.0/16"\n\n[[region.pool]]\nname = "default"\n'
    entry += 'instance_types = ["m7g.large"]\nslots = 4\nmax_instances = 4\n'
    (tmp_path / "local.toml").write_text((ENVIRONMENTS / "local.toml").read_text() + entry)
    more = read(synthesise(Settings("local", tmp_path), tmp_path / "out"))
    assert {"edge-us-west-2"} == more.keys() - local.keys()
    changed = {
        f"{stack}: {kind}"
        for stack, content in local.items()
        for kind, named in content["resource"].items()
        for name, resource in named.items()
        if planned(more[stack]["resource"][kind][name]) != planned(resource)
    }
    assert {
        "foundation: aws_ecr_replication_configuration",
        "control-plane: aws_vpc_endpoint_service",
        "control-plane: aws_ecs_task_definition",
        "control-plane: aws_cloudwatch_dashboard",
    } == changed
    added = {
        f"{stack}: {kind}"
        for stack in local
        for kind, named in more[stack]["resource"].items()
        if named.keys() - local[stack]["resource"].get(kind, {}).keys()
    }
    assert {
        "control-plane: aws_cloudwatch_metric_alarm",
        "control-plane: aws_vpc_security_group_ingress_rule",
    } == added
    assert all(more[stack].get("output") == content.get("output") for stack, content in local.items())


def test_stateful_resources_refuse_destruction(prod: Stacks) -> None:
    """Every stateful resource, in every stack, is protected from destruction."""
    unprotected = [
        path
        for kind in STATEFUL
        for path, resource in resources(prod, kind)
        if not resource.get("lifecycle", {}).get("prevent_destroy")
    ]
    assert unprotected == []
    assert all(database["deletion_protection"] for _, database in resources(prod, "aws_db_instance"))


def test_destroying_needs_the_flag(tmp_path: Path) -> None:
    """With the flag, no resource is protected from a destroy."""
    stacks = read(synthesise(Settings("dev", ENVIRONMENTS, allow_destroy=True), tmp_path))
    held = [
        path
        for kind in STATEFUL
        for path, one in resources(stacks, kind)
        if one["lifecycle"]["prevent_destroy"]
    ]
    assert held == []


def test_every_image_is_named_by_digest(prod: Stacks) -> None:
    """Images have a digest in task definitions and in the instances' boot scripts."""
    images = [
        container["image"]
        for _, task in resources(prod, "aws_ecs_task_definition")
        for container in json.loads(task["container_definitions"])
    ]
    scripts = [
        base64.b64decode(one["user_data"]).decode() for _, one in resources(prod, "aws_launch_template")
    ]
    images += [image for script in scripts for image in re.findall(r"\S+\.dkr\.ecr\.\S+/\S+", script)]
    assert len(images) > 10
    assert [image for image in images if not re.search(r"@sha256:[0-9a-f]{64}$", image)] == []


def test_two_worker_images_are_admitted(tmp_path: Path) -> None:
    """Both digests reach every service, so that during a rollout old workers go on and no third image gets
    work.
    """
    before = "sha256:" + 64 * "d"
    text = (ENVIRONMENTS / "local.toml").read_text()
    worker = re.search(r'^worker = "edge-worker@(.*)"$', text, re.MULTILINE)
    assert worker
    line = f'{worker[0]}\nprevious_worker = "edge-worker@{before}"'
    (tmp_path / "local.toml").write_text(text.replace(worker[0], line))
    stacks = read(synthesise(Settings("local", tmp_path), tmp_path / "out"))
    definitions = [
        json.loads(resource["container_definitions"])[0]
        for _, resource in resources({"control-plane": stacks["control-plane"]}, "aws_ecs_task_definition")
    ]
    assert definitions
    for definition in definitions:
        given = {entry["name"]: entry["value"] for entry in definition["environment"]}
        assert given["AIRFLOW__AIRBRIDGE__WORKER_IMAGES"] == f"{worker[1]},{before}"


def test_pools_have_images_of_their_own(tmp_path: Path) -> None:
    """A pool that names a derived image boots it, may pull it and reports its digest; the others keep the worker image; both are
    admitted, and both have a repository.
    """
    digest = "sha256:" + 32 * "de"
    text = (ENVIRONMENTS / "local.toml").read_text()
    text = text.replace("[pipelines]", f'[images.derived]\ntools = "tools@{digest}"\n\n[pipelines]')
    head, pool, rest = text.partition("[[region.pool]]\n")
    (tmp_path / "local.toml").write_text(f'{head}{pool}image = "tools"\n{rest}')
    stacks = read(synthesise(Settings("local", tmp_path), tmp_path / "out"))
    scripts = {
        name: base64.b64decode(one["user_data"]).decode()
        for name, one in resources(stacks, "aws_launch_template")
    }
    derived = [script for script in scripts.values() if f"/tools@{digest}" in script]
    assert len(derived) == 1
    assert len(scripts) > 1
    assert f"AIRBRIDGE_WORKER_IMAGE_DIGEST={digest}" in derived[0]
    assert all("/edge-worker@sha256:" in script for script in scripts.values() if script not in derived)
    foundation = {"foundation": stacks["foundation"]}
    names = {one["name"] for _, one in resources(foundation, "aws_ecr_repository")}
    assert names == {
        "airbridge-local/control-plane",
        "airbridge-local/edge-worker",
        "airbridge-local/tools",
    }
    pulls = json.dumps([one for _, one in resources(stacks, "aws_iam_role_policy")])
    assert pulls.count("repository/airbridge-local/tools") == 1
    plane = {"control-plane": stacks["control-plane"]}
    for _, resource in resources(plane, "aws_ecs_task_definition"):
        assert digest in resource["container_definitions"]


def test_only_gateway_gets_policy(tmp_path: Path) -> None:
    """A policy beside the environments reaches the gateway as a file of its task definition, and no other service."""
    (tmp_path / "environments").mkdir()
    (tmp_path / "policies").mkdir()
    (tmp_path / "environments/local.toml").write_text((ENVIRONMENTS / "local.toml").read_text())
    text = 'schema = 1\n[[rule]]\nname = "all"\ndags = ["*"]\nvariables.read = ["*"]\n'
    (tmp_path / "policies/local.toml").write_text(text)
    stacks = read(synthesise(Settings("local", tmp_path / "environments"), tmp_path / "out"))
    plane = {"control-plane": stacks["control-plane"]}
    assert text == task_files.files(stacks, "gateway")["POLICY_TOML"]
    given = {
        json.loads(resource["container_definitions"])[0]["name"]
        for _, resource in resources(plane, "aws_ecs_task_definition")
        if "AIRBRIDGE_FILE_POLICY_TOML" in resource["container_definitions"]
    }
    assert given == {"gateway"}


def test_invalid_policy_is_named(tmp_path: Path) -> None:
    """An invalid policy fails before anything is synthesised, with the file and the place in it."""
    (tmp_path / "environments").mkdir()
    (tmp_path / "policies").mkdir()
    (tmp_path / "environments/local.toml").write_text((ENVIRONMENTS / "local.toml").read_text())
    (tmp_path / "policies/local.toml").write_text("schema = \n")
    with pytest.raises(EnvironmentFileError, match=r"policies/local\.toml: "):
        synthesise(Settings("local", tmp_path / "environments"), tmp_path / "out")


def test_no_boot_script_holds_a_secret(prod: Stacks) -> None:
    """Workers enrol by their role; what the script sets is addresses and sizes."""
    for _, template in resources(prod, "aws_launch_template"):
        script = base64.b64decode(template["user_data"]).decode()
        assert "AIRBRIDGE_WORKER_JOIN_METHOD=aws_iam" in script
        # The name of a field of the answer to AssumeRole is no secret.
        script = script.replace("SecretAccessKey: Credentials.SecretAccessKey", "")
        assert not re.search(r"(?i)(secret|password=|private key|join_token|AKIA)", script)


def test_boot_script_names_the_image(prod: Stacks) -> None:
    """A worker reports the digest that it runs from: the gateway refuses one without an admitted digest."""
    for _, template in resources(prod, "aws_launch_template"):
        script = base64.b64decode(template["user_data"]).decode()
        [pulled] = set(re.findall(r"docker pull \S+@(sha256:[0-9a-f]{64})", script))
        assert re.findall(r"^AIRBRIDGE_WORKER_IMAGE_DIGEST=(\S+)$", script, re.MULTILINE) == [pulled]


def test_no_policy_has_a_wildcard_action(prod: Stacks) -> None:
    """Allowed actions are named in full, in every role's policy."""
    assert [
        (path, one) for path, one in policies(prod) if one["Effect"] == "Allow" and "*" in str(one["Action"])
    ] == []


def test_wildcard_resources_are_unavoidable(prod: Stacks) -> None:
    """`Resource: "*"` stands with actions that take no resource, and nowhere else; pipelines create the unnamed."""
    forced = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData", "ssm:UpdateInstanceInformation"}
    broad = [
        (path, one["Sid"])
        for path, one in policies(prod)
        if one["Resource"] == "*"
        and "pipeline" not in path
        and not all(
            action in forced or action.startswith("ssmmessages:") for action in _listed(one["Action"])
        )
    ]
    assert broad == []


def test_queue_policy_restricts_principals(prod: Stacks) -> None:
    """The control plane sends and the pool receives; every other principal is denied by the queue itself,
    and so is access without TLS.
    """
    work = [(path, one) for path, one in resources(prod, "aws_sqs_queue_policy") if "queue-" in path]
    assert len(work) == 5
    for path, policy in work:
        statements = {one["Sid"]: one for one in json.loads(policy["policy"])["Statement"]}
        assert {"TlsOnly", "OnlyTheControlPlaneSends", "OnlyThisPoolReceives"} == statements.keys()
        _, stack, _, queue = path.split("/", 3)[0], *path.split("/", 3)[1:]
        sender = statements["OnlyTheControlPlaneSends"]["Condition"]["ArnNotEquals"]["aws:PrincipalArn"]
        receiver = statements["OnlyThisPoolReceives"]["Condition"]["ArnNotEquals"]["aws:PrincipalArn"]
        assert sender == "arn:aws:iam::333333333333:role/airbridge-prod-scheduler"
        region, pool = (
            stack.removeprefix("edge-"),
            queue.split("/")[-1].removeprefix("queue-").removesuffix("-policy"),
        )
        assert f"arn:aws:iam::333333333333:role/airbridge-prod-{region}-{pool}-worker" == receiver


def test_redrive_policies_match_provider_format(prod: Stacks) -> None:
    """Sorted and without spaces: the provider compares texts, and a queue service may give back just what it was sent."""
    texts = [one["redrive_policy"] for _, one in resources(prod, "aws_sqs_queue") if "redrive_policy" in one]
    texts += [one["redrive_allow_policy"] for _, one in resources(prod, "aws_sqs_queue_redrive_allow_policy")]
    assert len(texts) > 1
    assert texts == [json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) for text in texts]


def test_workers_use_vpc_endpoints_only(prod: Stacks) -> None:
    """No internet gateway, no NAT, no rule to an address range in an edge stack; nothing comes in to a worker."""
    edge = {name: content for name, content in prod.items() if name.startswith("edge-")}
    for content in edge.values():
        assert not {"aws_internet_gateway", "aws_nat_gateway", "aws_route"} & content["resource"].keys()
    assert [
        path for path, rule in resources(edge, "aws_vpc_security_group_egress_rule") if rule.get("cidr_ipv4")
    ] == []
    inbound = [
        rule["security_group_id"] for _, rule in resources(edge, "aws_vpc_security_group_ingress_rule")
    ]
    assert not any("workers" in group for group in inbound)


def test_an_instance_is_closed_and_drains(prod: Stacks) -> None:
    """IMDSv2, encrypted disk, no SSH key, no public address; a hook holds a terminating instance."""
    for _, template in resources(prod, "aws_launch_template"):
        assert template["metadata_options"]["http_tokens"] == "required"
        assert template["block_device_mappings"][0]["ebs"]["encrypted"] == "true"
        assert template["network_interfaces"][0]["associate_public_ip_address"] == "false"
        assert "key_name" not in template
    for _, group in resources(prod, "aws_autoscaling_group"):
        hook = group["initial_lifecycle_hook"][0]
        assert hook["lifecycle_transition"] == "autoscaling:EC2_INSTANCE_TERMINATING"


def test_backlog_alarm_period_is_short(prod: Stacks) -> None:
    """The alarm that grows a pool looks at one period of ten seconds, on the signal that the control plane sends."""
    alarms = [one for path, one in resources(prod, "aws_cloudwatch_metric_alarm") if "/backlog/" in path]
    assert len(alarms) == 5
    assert {("AirBridge", "BacklogPerSlot", 10, 1)} == {
        (one["namespace"], one["metric_name"], one["period"], one["evaluation_periods"]) for one in alarms
    }
    assert all({"Region", "Pool"} == one["dimensions"].keys() for one in alarms)


def watched(alarm: dict[str, Any]) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Namespace, metric and names of dimensions of each series that an alarm looks at."""
    looks = (
        [alarm]
        if "metric_name" in alarm
        else [one["metric"] for one in alarm["metric_query"] if "metric" in one]
    )
    for one in looks:
        yield one["namespace"], one["metric_name"], frozenset(one["dimensions"])


def test_alarms_use_published_metrics(prod: Stacks) -> None:
    """AirBridge's metrics are a gateway's, in the home region under the dimensions that it publishes, or the schedulers', in the
    pool's own region; both services get the namespace. AWS' metrics are of a resource of the stack."""
    published = observed()["published"]
    signals = {"BacklogPerSlot", "WorkPerSlot", "PoolWithoutHeartbeat"}
    for path, alarm in resources(prod, "aws_cloudwatch_metric_alarm"):
        for namespace, metric, dimensions in watched(alarm):
            if namespace.startswith("AWS/"):
                continue
            assert namespace == "AirBridge"
            if metric in signals:
                assert {"Region", "Pool"} == dimensions
                assert path.startswith(f"edge-{alarm['dimensions']['Region']}/")
            else:
                assert sorted(dimensions) in [sorted(each) for each in published[metric]]
                assert path.startswith("control-plane/")
    for _, definition in resources(prod, "aws_ecs_task_definition"):
        main = json.loads(definition["container_definitions"])[0]
        told = {one["name"]: one["value"] for one in main["environment"]}
        if main["name"] in {"gateway", "scheduler"}:
            kind = "METRICS" if main["name"] == "gateway" else "SCALING"
            assert told[f"AIRFLOW__AIRBRIDGE__{kind}_NAMESPACE"] == "AirBridge"
            assert main["logConfiguration"]["logDriver"] == "awslogs"


def test_defined_alarms_notify_people(prod: Stacks) -> None:
    """Once for the control plane, once for each region, once for each pool; the rest are those that scale a group."""
    defined = {alarm["name"]: alarm["scope"] for alarm in observed()["alarms"]}
    alarms = [one for _, one in resources(prod, "aws_cloudwatch_metric_alarm")]
    for_people = [one for one in alarms if one["alarm_name"].rsplit("-", 1)[1] in defined]
    pools = [one["alarm_name"] for one in alarms if one["alarm_name"].endswith("-backlog")]
    regions = [stack for stack in prod if stack.startswith("edge-")]
    many = {"control_plane": 1, "region": len(regions), "pool": len(pools)}
    assert {name: many[scope] for name, scope in defined.items()} == Counter(
        one["alarm_name"].rsplit("-", 1)[1] for one in for_people
    )
    assert all("topic" in one["alarm_actions"][0] for one in for_people)
    assert {"backlog", "idle"} == {
        one["alarm_name"].rsplit("-", 1)[1] for one in alarms if one not in for_people
    }


def test_alarms_link_to_runbooks(prod: Stacks) -> None:
    """The message of an alarm that notifies people names a heading of the runbooks page."""
    page = (ENVIRONMENTS.parents[1] / "docs" / "how-to" / "runbooks.md").read_text()
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", page, re.MULTILINE)}
    for _, alarm in resources(prod, "aws_cloudwatch_metric_alarm"):
        if "topic" in alarm["alarm_actions"][0]:
            found = re.search(r"docs/how-to/runbooks\.md#(\w+)$", alarm["alarm_description"])
            assert found, alarm["alarm_description"]
            assert found[1] in anchors


def test_the_dashboard_draws_what_is_published(prod: Stacks) -> None:
    """Each search names a gateway's metric and one of its sets of dimensions; each pool's signal is drawn from its region."""
    (_, dashboard), *_ = resources(prod, "aws_cloudwatch_dashboard")
    for widget in json.loads(dashboard["dashboard_body"])["widgets"]:
        assert widget["properties"]["metrics"], widget
        for line in widget["properties"]["metrics"]:
            if isinstance(line[0], dict):
                found = re.match(
                    r"SEARCH\('\{AirBridge,([a-z,]+)\} MetricName=\"(\w+)\"'", line[0]["expression"]
                )
                assert found
                assert found[1].split(",") in observed()["published"][found[2]]
            elif line[0] == "AirBridge":
                assert line[line.index("Region") + 1] == line[-1]["region"]


def test_the_services_wait_for_the_migrations(prod: Stacks) -> None:
    """Each depends on the one-off run, and its containers wait for the schema."""
    services = list(resources(prod, "aws_ecs_service"))
    assert len(services) == 5
    assert all(any("terraform_data" in item for item in service["depends_on"]) for _, service in services)
    tasks = {
        task["family"]: json.loads(task["container_definitions"])
        for _, task in resources(prod, "aws_ecs_task_definition")
    }
    for _, service in services:
        assert tasks[service["name"]][0]["dependsOn"] == [
            {"containerName": "migrations", "condition": "SUCCESS"}
        ]


@pytest.mark.parametrize(
    ("service", "files"),
    [
        ("scheduler", {"regions.toml", "signing.key"}),
        ("dag-processor", {"regions.toml", "publish.key"}),
        (
            "gateway",
            {
                "regions.toml",
                "ca.crt",
                "ca.key",
                "signing.pub.json",
                "token.key",
                "token.pub.json",
                "publish.key",
                "publish.pub.json",
            },
        ),
        ("api-server", {"regions.toml", "ui-oidc.toml", "ui-oidc.secret"}),
    ],
)
def test_services_get_own_secrets_only(prod: Stacks, service: str, files: set[str]) -> None:
    """The CA's key is the gateway's alone, the signing key the scheduler's."""
    tasks = {
        task["family"]: json.loads(task["container_definitions"])
        for _, task in resources(prod, "aws_ecs_task_definition")
    }
    command = " ".join(tasks[f"airbridge-prod-{service}"][0]["command"])
    assert files == set(re.findall(r"> /run/airbridge/(\S+?);", command))


@pytest.mark.parametrize("service", service_secrets.services())
def test_services_get_table_secrets(prod: Stacks, service: str) -> None:
    """Every container of a service gets the table's secrets at most, and its own database role, never the owner."""
    [task] = [
        task
        for _, task in resources(prod, "aws_ecs_task_definition")
        if task["family"] == f"airbridge-prod-{service}"
    ]
    main, waiting = json.loads(task["container_definitions"])
    public = {
        "gateway": {"ca-certificate", "verify-keys", "old-token-keys", "publishing-keys"},
        "api-server": {"oidc-client-secret"},
    }.get(service, set())
    own = {f"database-{service}"}
    assert _secret_names(main) == {*service_secrets.of(service), *public, *own}
    assert _secret_names(waiting) == own
    for container in (main, waiting):
        environment = {each["name"]: each["value"] for each in container["environment"]}
        assert environment["PGUSER"] == service_secrets.role(service)
        assert "master_user_secret" not in json.dumps(container)
    makes_own = "AIRFLOW__API_AUTH__JWT_SECRET=" in " ".join(main["command"])
    assert makes_own == ("jwt-secret" not in service_secrets.of(service))


def test_migration_sets_the_roles_passwords(prod: Stacks) -> None:
    """The migration is the owner's: it gets the roles' passwords, no other secret, and sets them after it."""
    [task] = [
        task
        for _, task in resources(prod, "aws_ecs_task_definition")
        if task["family"] == "airbridge-prod-migrate"
    ]
    [container] = json.loads(task["container_definitions"])
    assert _secret_names(container) == {f"database-{service}" for service in service_secrets.services()}
    names = {each["name"] for each in container["secrets"]}
    assert {"PGUSER", "PGPASSWORD", "AIRBRIDGE_SECRET_DATABASE_API_SERVER"} < names
    assert "airflow db migrate && python -m airbridge.executor.ledger.access.logins" in container["command"]


def _secret_names(container: dict[str, Any]) -> set[str]:
    """The names in Secrets Manager of a container's secrets, the database's own secret aside."""
    found = {
        re.fullmatch(
            r"\$\{data\.terraform_remote_state\.foundation\.outputs\.secret_arns\.([\w-]+)\}",
            each["valueFrom"],
        )
        for each in container["secrets"]
    }
    return {match[1] for match in found if match}


def test_load_balancer_passes_tls_through(prod: Stacks) -> None:
    """Mutual TLS ends in the gateway: 443 is plain TCP to 8443."""
    listeners = {one["port"]: one for path, one in resources(prod, "aws_lb_listener") if "/gateway/" in path}
    assert {port: one["protocol"] for port, one in listeners.items()} == {443: "TCP", 8444: "TCP"}
    targets = {one["port"] for path, one in resources(prod, "aws_lb_target_group") if "/gateway/" in path}
    assert {8443, 8444} == targets


def test_stacks_have_separate_locked_states(prod: Stacks) -> None:
    """One key for each stack, with Terraform's own lock, in the bucket that bootstrap creates."""
    backends = {stack: content["terraform"]["backend"]["s3"] for stack, content in prod.items()}
    assert {stack: f"prod/{stack}.tfstate" for stack in prod} == {
        stack: one["key"] for stack, one in backends.items()
    }
    assert all(one["use_lockfile"] and one["encrypt"] for one in backends.values())


def test_bootstrap_begins_with_local_state(tmp_path: Path) -> None:
    """Its bucket is not there yet; the other stacks' states go into the bucket all the same."""
    stacks = read(synthesise(Settings("dev", ENVIRONMENTS, local_state=True), tmp_path))
    assert {stack: next(iter(content["terraform"]["backend"])) for stack, content in stacks.items()} == {
        "bootstrap": "local",
        "foundation": "s3",
        "control-plane": "s3",
        "edge-us-east-1": "s3",
        "edge-eu-west-1": "s3",
    }


def test_everything_that_takes_tags_has_them(prod: Stacks) -> None:
    """Every resource that takes tags has them, also those that constructs create."""
    tagged = [one["tags"] for _, one in resources(prod, "aws_security_group")]
    tagged += [one["tags"] for _, one in resources(prod, "aws_sqs_queue")]
    assert all(tags["airbridge:environment"] == "prod" for tags in tagged)


def test_services_read_output_catalogue(prod: Stacks) -> None:
    """In AWS names are known beforehand; the two ways to the catalogue agree."""
    environment = environments.load(ENVIRONMENTS / "prod.toml")
    regions = [
        catalogue.CatalogueRegion.expected(environment.names, region) for region in environment.regions
    ]
    assert catalogue.render("us-east-1", regions) == task_files.regions(prod)
    outputs: dict[str, Any] = {"control-plane": {"home_region": "us-east-1"}}
    for region in regions:
        outputs[f"edge-{region.name}"] = {
            "region_name": region.name,
            "log_bucket": region.log_bucket,
            "bundle_bucket": region.bundle_bucket,
            "dead_letter_queue_url": region.dead_letter_queue_url,
            "queue_urls": region.queue_urls,
            "slots": region.slots,
            "worker_role_arns": region.role_arns,
            "data": region.data,
        }
    assert catalogue.from_outputs(outputs) == task_files.regions(prod)


def test_synthesis_is_deterministic(tmp_path: Path) -> None:
    """The synthesised JSON depends on neither time, place nor chance."""
    first, second = (synthesise(Settings("dev", ENVIRONMENTS), tmp_path / name) for name in ("a", "b"))
    files = sorted(file.relative_to(first) for file in first.glob("stacks/*/cdk.tf.json"))
    assert 5 == len(files)
    assert [(first / file).read_bytes() for file in files] == [(second / file).read_bytes() for file in files]


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]
