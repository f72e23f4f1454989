"""Every key is rotated, by the runbook as it stands in the docs, while tasks run and certificates are renewed.

`make rotation` runs it, with 200 tasks and 1,000 renewals. The script itself is tested in every run, on a gateway alone
(tests/integration/gateway/test_runbook.py).
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from tests.acceptance.rotating import Crowd
from tests.acceptance.runs import run_with_trouble
from tests.support.platform import LocalPlatform, running, wait_for

RUNBOOK = Path(__file__).parents[2] / "docs" / "how-to" / "rotate-everything.md"
DAG_ID = os.environ.get("AIRBRIDGE_ROTATION_DAG", "fifty")
ASKED_FOR = "AIRBRIDGE_ROTATION_DAG" in os.environ
TASKS = {"fifty": 50, "two_hundred": 200}[DAG_ID]
TASK_SECONDS = 1_200 / TASKS
"""Long enough for the script to run from its beginning to its end meanwhile: there are 16 slots."""
RENEWALS = int(os.environ.get("AIRBRIDGE_ROTATION_RENEWALS", "100"))
MESSAGE_TTL = 20
HEARTBEAT_SECONDS = 2


def follow_runbook(platform: LocalPlatform, tmp_path: Path) -> str:
    """Run the runbook's script, and return what it printed."""
    [script] = re.findall(r"```bash\n(.*?)```", RUNBOOK.read_text(), re.DOTALL)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "AIRBRIDGE_DIR": str(platform.directory.root),
        "AIRBRIDGE_SECRETS_DIR": str(platform.directory.secrets),
        "AIRBRIDGE_CA_FILE": str(platform.directory.ca_file),
        "NEW_ROOT": str(tmp_path / "root"),
        "NEW_TOKEN_FILE": str(tmp_path / "token"),
        "KEPT": str(tmp_path / "kept.json"),
        "RENEW_SECONDS": str(3 * HEARTBEAT_SECONDS),
        "MESSAGE_TTL": str(MESSAGE_TTL),
    }
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    # The platform's own commands go on with the new token.
    platform.directory.operator_token_file.write_text((tmp_path / "token").read_text())
    return done.stdout


@pytest.mark.skipif(not ASKED_FOR, reason="minutes long: make rotation")
@pytest.mark.timeout(1200)
def test_rotation_under_load_fails_no_task(tmp_path: Path) -> None:
    """The runbook's script ends well, every task succeeds at its first try, renewals go on, and the audit trail is sound."""
    settings = {
        "airbridge.message_ttl": str(MESSAGE_TTL),
        "airbridge.heartbeat_interval": str(HEARTBEAT_SECONDS),
        "core.parallelism": "64",
    }
    with running(airflow=settings) as platform:
        before = identities(platform)
        crowd = Crowd(platform, 8)
        crowd.start()
        said: list[str] = []
        try:
            trouble = run_with_trouble(
                platform,
                DAG_ID,
                lambda: said.append(follow_runbook(platform, tmp_path)),
                seconds=TASK_SECONDS,
                timeout_seconds=600,
            )
            trouble.check(TASKS)
            assert {ti["try_number"] for ti in trouble.run.tasks} == {1}
            wait_for(lambda: crowd.renewals >= RENEWALS, f"{RENEWALS} renewals", 300)
        finally:
            crowd.stop()
        assert "sound: " in said[0]
        assert not identities(platform) & before
        seconds = [member.revoked_after() for member in crowd.members]
        print(
            f"\n{TASKS} tasks at their first try, {crowd.renewals} renewals, "
            f"{sum(len(each.failures) for each in crowd.members)} of them refused; revocation to refusal, ms: "
            f"median {statistics.median(seconds) * 1000:.0f}, highest {max(seconds) * 1000:.0f}"
        )


def identities(platform: LocalPlatform) -> set[str]:
    """The certificates of the platform's own workers."""
    names = tuple(platform.worker_pids())
    rows = platform.query("SELECT id, certificate_thumbprint FROM airbridge_worker")
    return {thumbprint for name, thumbprint in rows if name in names}
