"""Canaries: random texts that are planted as data of a region, and a scan of everything that the control plane has for them."""

from __future__ import annotations

import base64
import gzip
import json
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.support.platform import LocalPlatform

from airbridge.control_plane.local.exceptions import PlatformUnreachable

TAP = '''
"""Write what this process sends and receives over TLS into files, decrypted. For tests."""
import itertools, os, pathlib, ssl
_here, _numbers = pathlib.Path(__file__).parent / "tap", itertools.count()

class _Tapped(ssl.SSLObject):
    def _keep(self, data):
        if not hasattr(self, "_tap_file"):
            self._tap_file = _here / f"{os.getpid()}-{next(_numbers)}-{id(self)}"
        with self._tap_file.open("ab") as file:
            file.write(bytes(data))

    def read(self, len=1024, buffer=None):
        got = super().read(len, buffer)
        self._keep(got if buffer is None else buffer[:got])
        return got

    def write(self, data):
        sent = super().write(data)
        self._keep(data[:sent])
        return sent

ssl.SSLContext.sslobject_class = _Tapped
'''


def plant(names: Iterable[str]) -> dict[str, str]:
    """Return a random canary for each name."""
    return {name: f"canary{secrets.token_hex(16)}" for name in names}


@dataclass(frozen=True)
class Hit:
    """A canary that was found."""

    canary: str
    place: str


def tap(folder: Path) -> Path:
    """Make a folder that, on PYTHONPATH, has every Python process record its decrypted TLS traffic in ``tap``."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(TAP)
    (folder / "tap").mkdir(mode=0o777)
    return folder


def scan(sources: Iterable[tuple[str, bytes]], canaries: Mapping[str, str]) -> list[Hit]:
    """Return every canary found in the sources: as it is, in hex, in base64 at each alignment, and within gzip and zlib."""
    forms = [(name, form) for name, text in canaries.items() for form in _forms(text.encode())]
    return [
        Hit(name, place)
        for place, data in sources
        for content in _unpacked(data)
        for name, form in forms
        if form in content
    ]


def _forms(text: bytes) -> list[bytes]:
    # Of each alignment what does not depend on the neighbours.
    shifted = [base64.b64encode(b"x" * shift + text) for shift in range(3)]
    cores = [encoded[4:-4] for encoded in shifted]
    return [text, text.hex().encode(), *cores, text[::-1]]


def _unpacked(data: bytes) -> Iterator[bytes]:
    yield data
    with suppress(OSError, EOFError, zlib.error):
        yield gzip.decompress(data)
    with suppress(zlib.error):
        yield zlib.decompress(data)


@dataclass(frozen=True)
class Home:
    """Everything that the control plane has, of a platform whose processes run with `tap`."""

    platform: LocalPlatform
    tapped: Path
    home_region: str = "us-east-1"
    #: Traces that a collector received.
    spans: Any = ()

    def sources(self) -> Iterator[tuple[str, bytes]]:
        """Yield each source's name and content."""
        yield from self.database()
        yield from self.traffic()
        yield from self.requests()
        yield from self.buckets()
        yield from self.logs()
        yield from self.pages()
        yield "traces", repr(list(self.spans)).encode()

    def database(self) -> Iterator[tuple[str, bytes]]:
        """Every row of every table."""
        tables = self.platform.query(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
        )
        for schema, table in tables:
            rows = self.platform.query(f'SELECT t::text FROM "{schema}"."{table}" t')
            yield f"database: {table}", "\n".join(row[0] for row in rows).encode()

    def traffic(self) -> Iterator[tuple[str, bytes]]:
        """What passed the gateway, decrypted."""
        for file in sorted((self.tapped / "tap").glob(f"{self.platform.gateway_pid}-*")):
            yield f"gateway traffic: {file.name}", file.read_bytes()

    def requests(self) -> Iterator[tuple[str, bytes]]:
        """Requests to queues, as the emulator recorded them."""
        answer = httpx.get(f"{self.platform.state.aws_url}/moto-api/recorder/download-recording", timeout=60)
        for number, line in enumerate(answer.text.splitlines()):
            said = json.loads(line)
            if "/sqs/" not in json.dumps(said.get("headers", {})):
                continue
            body = said.get("body") or ""
            yield (
                f"queues: request {number}",
                base64.b64decode(body) if said.get("body_encoded") else str(body).encode(),
            )

    def buckets(self) -> Iterator[tuple[str, bytes]]:
        """Objects of the home region's buckets."""
        s3 = self.platform.aws_client("s3", self.home_region)
        for bucket in (each["Name"] for each in s3.list_buckets()["Buckets"]):
            if self.home_region not in bucket:
                continue
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                for each in page.get("Contents", ()):
                    key = each["Key"]
                    yield f"s3://{bucket}/{key}", s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def logs(self) -> Iterator[tuple[str, bytes]]:
        """Output of the control plane's processes: not of workers, which are in their regions."""
        for file in sorted(self.platform.directory.logs.rglob("*")):
            if file.is_file() and not file.name.startswith("worker"):
                yield f"logs: {file.name}", file.read_bytes()

    def pages(self) -> Iterator[tuple[str, bytes]]:
        """What the REST API, and so the UI, shows of every task, and the gateway's metrics."""
        rest = self.platform.airflow
        for dag_id, run_id, task_id, map_index, tries in self.platform.query(
            "SELECT dag_id, run_id, task_id, map_index, try_number FROM task_instance"
        ):
            for attempt in range(1, max(tries, 1) + 1):
                with suppress(PlatformUnreachable, KeyError):
                    text = "\n".join(rest.log(dag_id, run_id, task_id, attempt, map_index))
                    yield f"page: log of {task_id}", text.encode()
            with suppress(PlatformUnreachable, KeyError):
                yield f"page: XCom of {task_id}", repr(rest.xcom(dag_id, run_id, task_id)).encode()
        with self.platform.operator() as operator:
            for path in ("/operator/v1/status", "/operator/v1/audit", "/operator/v1/metrics", "/metrics"):
                answer = operator.get(path)
                if answer.status_code == 200:
                    yield f"page: {path}", answer.content
