"""Rules of the programs in the containers that no emulator checks: it runs none of them. Found by booting the task definitions."""

from __future__ import annotations

import json

from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import Stacks


def test_api_server_is_one_process(prod: Stacks, local: Stacks) -> None:
    """uvicorn 0.35 kills a worker process that answers no ping within 5 s, and importing Airflow takes longer on a small task.

    Several workers then die in turn, for ever (uvicorn/supervisors/multiprocess.py). One alone has no supervisor; more requests
    need more copies of the task.
    """
    for stacks in (prod, local):
        definitions = dict(resources(stacks, "aws_ecs_task_definition"))
        [server] = [one for path, one in definitions.items() if "/api-server/" in path]
        main = json.loads(server["container_definitions"])[0]
        given = {each["name"]: each["value"] for each in main["environment"]}
        assert "1" == given["AIRFLOW__API__WORKERS"]
