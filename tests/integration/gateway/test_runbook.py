"""The runbook for a compromise, as it stands in the docs, on a gateway whose workers only beat and renew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.gateway.world import TRUST_DOMAIN, VERSIONS, Worker, World, csr_pem
from tests.support.platform import wait_for

from airbridge.control_plane.identity import rotation
from airbridge.control_plane.identity.ca import key_id
from airbridge.core.protocol import Credentials, RenewCommand, TrustCommand

RUNBOOK = Path(__file__).parents[3] / "docs" / "how-to" / "rotate-everything.md"
SCOPES = ("workers:*", "tokens:*", "dags:*", "audit:read", "revocations:*", "policy:read", "metrics:read")


class Alive(threading.Thread):
    """A worker that sends heartbeats, applies the trust that it receives, and renews on order."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(name=worker.name.worker)
        self._worker = worker
        self._trust = ""
        self._done = threading.Event()
        self.renewals = 0
        self.errors: list[str] = []

    def run(self) -> None:
        while not self._done.wait(0.2):
            try:
                self._beat()
            except (httpx.HTTPError, AssertionError) as error:
                self.errors.append(repr(error))

    def end(self) -> None:
        self._done.set()
        self.join()

    def _beat(self) -> None:
        for command in self._worker.beat(trust_version=self._trust).commands:
            if isinstance(command, TrustCommand):
                self._worker.trust, self._trust = command.trust.ca_pem, command.trust.version
                self._worker.present(self._worker.certificate_pem, self._worker.token)
            if isinstance(command, RenewCommand):
                self._renew()

    def _renew(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        answer = self._worker.post("renew", {"csr_pem": csr_pem(key), "versions": VERSIONS.model_dump()})
        assert answer.status_code == 200, answer.text
        self._worker.key = key
        self._worker.use(Credentials.model_validate_json(answer.content))
        self.renewals += 1


@pytest.mark.timeout(600)
def test_rotation_runbook_keeps_workers(world: World, tmp_path: Path) -> None:
    """The script ends well; new root, CA, keys and token; the old token is refused; workers never missed a beat."""
    directory = world.directory / "secrets"
    before, keys_before = rotation.certificates(directory), world.keyring.keys.describe()
    old_token = world.access_token(*SCOPES)
    (tmp_path / "old").write_text(old_token)
    (tmp_path / "ca.crt").write_text(world.ca.certificate_pem)
    [script] = re.findall(r"```bash\n(.*?)```", RUNBOOK.read_text(), re.DOTALL)
    environment = {
        **{name: value for name, value in os.environ.items() if name.startswith("AIRFLOW__")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "AIRFLOW_HOME": os.environ["AIRFLOW_HOME"],
        "AIRBRIDGE_URL": world.operator_url,
        "AIRBRIDGE_TOKEN_FILE": str(tmp_path / "old"),
        "AIRBRIDGE_CA_FILE": str(tmp_path / "ca.crt"),
        "AIRBRIDGE_SECRETS_DIR": str(directory),
        "AIRBRIDGE_TRUST_DOMAIN": TRUST_DOMAIN,
        "NEW_ROOT": str(tmp_path / "root"),
        "NEW_TOKEN_FILE": str(tmp_path / "new"),
        "KEPT": str(tmp_path / "kept.json"),
        "RENEW_SECONDS": "4",
        "MESSAGE_TTL": "2",
    }
    alive = [Alive(world.worker()) for _ in range(2)]
    for each in alive:
        each.start()
    try:
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=400, check=False
        )
    finally:
        for each in alive:
            each.end()
    assert done.returncode == 0, done.stderr + done.stdout
    after, keys_after = rotation.certificates(directory), world.keyring.keys.describe()
    assert {key_id(each) for each in after.roots}.isdisjoint(key_id(each) for each in before.roots)
    for name in ("issuing_ca", "roots", "work_item_keys", "publishing_keys", "token_keys", "trust"):
        assert keys_after[name] != keys_before[name], name
    # The gateway follows the files at its own pace.
    wait_for(lambda: _counts(world) == (1, 1, 1), "the gateway to let go of the old keys")
    assert [each.errors for each in alive] == [[], []]
    assert all(each.renewals >= 1 for each in alive)
    with world.operator(old_token) as operator:
        assert operator.get("/operator/v1/workers").status_code == 401
    with world.operator((tmp_path / "new").read_text().strip()) as operator:
        assert operator.get("/operator/v1/workers").status_code == 200
    assert done.stdout.rstrip().splitlines()[-1].startswith("sound: ")


def _counts(world: World) -> tuple[int, int, int]:
    """Return the numbers of work-item keys, token keys and publishing keys that the gateway uses."""
    keys = world.keyring.keys
    return len(keys.trust.verify_keys), len(keys.tokens.key_ids), len(keys.trust.publish_keys)
