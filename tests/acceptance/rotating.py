"""Workers that do nothing but renew, as fast as they can, beside a platform that works."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.gateway.world import client_context, csr_pem
from tests.support.platform import LocalPlatform

from airbridge.control_plane.parity import Parity
from airbridge.core.protocol import PROTOCOL_VERSION, VERSION_HEADER, Credentials, Versions

HEADERS = {VERSION_HEADER: str(PROTOCOL_VERSION)}
VERSIONS = Versions(
    airbridge=Parity.load(None).control_plane, airflow="3.0.4", task_sdk="1.0.4", python="3.11.7"
)


def _post(client: httpx.Client, what: str, token: str | None = None, **body: object) -> httpx.Response:
    headers = HEADERS if token is None else {**HEADERS, "Authorization": f"Bearer {token}"}
    return client.post(f"/edge/v1/{what}", json={**body, "versions": VERSIONS.model_dump()}, headers=headers)


@dataclass
class Renewer:
    """One enrolled worker."""

    platform: LocalPlatform
    name: str
    renewals: int = 0
    rejoined: int = 0
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._join()

    def _join(self) -> None:
        """Enrol by token: each time by a new one, as its host would be given."""
        with self.platform.operator() as operator:
            asked = {"token": {"kind": "join", "region": "eu-west-1", "pool": "default"}}
            token = operator.post("/operator/v1/tokens", json=asked).raise_for_status().json()["token"]
        with self._client(client_context(self.platform.directory.ca_file.read_text())) as client:
            answer = _post(
                client,
                "enrol",
                region="eu-west-1",
                pool="default",
                worker=self.name,
                csr_pem=csr_pem(self._key),
                join={"method": "token", "token": token},
            )
        self._take(answer)

    def renew(self) -> bool:
        """Renew once, over a connection of its own; False if it was refused."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        with self._as_itself() as client:
            answer = _post(client, "renew", self.credentials.access_token, csr_pem=csr_pem(self._key))
        if answer.status_code != 200:
            self.failures.append(answer.text)
            return False
        self._take(answer)
        self.renewals += 1
        return True

    def revoked_after(self) -> float:
        """Revoke this worker, and return the seconds from the operator's answer to its refusal, on an open connection."""
        with self._as_itself() as client, self.platform.operator() as operator:
            assert (
                _post(client, "renew", self.credentials.access_token, csr_pem=csr_pem(self._key)).status_code
                == 200
            )
            operator.post(
                f"/operator/v1/workers/{self.name}/revoke", json={"comment": "test"}
            ).raise_for_status()
            began = time.monotonic()
            answer = _post(client, "renew", self.credentials.access_token, csr_pem=csr_pem(self._key))
            assert (answer.status_code, answer.json()["reason"]) == (403, "revoked")
            return time.monotonic() - began

    def _take(self, answer: httpx.Response) -> None:
        answer.raise_for_status()
        self.credentials = Credentials.model_validate_json(answer.content)
        self._used = self._key

    def _as_itself(self) -> httpx.Client:
        c = self.credentials
        return self._client(client_context(c.trust.ca_pem, c.certificate_pem, self._used))

    def _client(self, context: object) -> httpx.Client:
        url = str(self.platform.state.component("gateway").url)
        return httpx.Client(base_url=url, verify=context, trust_env=False, timeout=60)  # type: ignore[arg-type]


class Crowd:
    """Renewers in threads of their own, until they are stopped."""

    def __init__(self, platform: LocalPlatform, size: int) -> None:
        self.members = [Renewer(platform, f"renewer-{number}") for number in range(size)]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in self.members]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def renewals(self) -> int:
        return sum(each.renewals for each in self.members)

    def _run(self, member: Renewer) -> None:
        while not self._stop.is_set():
            with suppress(httpx.TransportError):  # as a worker would: try again
                member.renew()
            self._stop.wait(0.05)
