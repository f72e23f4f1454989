"""Calls of a task's supervisor that the agent itself answers: URLs by which the task reaches its region's bucket.

The task holds no credential: it is given a URL to one object, for one transfer. What it may read without the control plane are XComs of its own DAG in its own region; everything else is the gateway's to grant, by policy.
"""

from __future__ import annotations

import base64
import json
from typing import Final
from urllib.parse import quote

import structlog

from airbridge.core.exceptions import StoreError
from airbridge.core.protocol import RegionSettings
from airbridge.core.residency import xcoms
from airbridge.core.residency.xcoms import ObjectName
from airbridge.core.violations import Place, Violation
from airbridge.edge_worker.gateway_client.region import WorkerRegion
from airbridge.edge_worker.proxy.protocol import READS, Call, Reply
from airbridge.edge_worker.work.attempts import Attempt

log = structlog.get_logger(__name__)

#: Paths that the Task Execution API does not have.
STORE: Final = "airbridge/store-xcom"
LOAD: Final = "airbridge/load-xcom"
GRANTED: Final = "stored-xcoms"

_JSON: Final = {"content-type": "application/json"}
_PLACE: Final = Place("xcom")


def is_ours(call: Call) -> bool:
    """Return whether a call is one of these."""
    return call.path in {STORE, LOAD}


def is_read(call: Call) -> bool:
    """Return whether a call changes nothing: it may be given up, and made by a task that is being stopped."""
    return call.method in READS or call.path == LOAD


class RegionCalls:
    """Answers for all tasks of a worker. Its methods may be called in threads."""

    def __init__(self, region: WorkerRegion) -> None:
        self._region = region

    def answer(self, attempt: Attempt, call: Call) -> Reply | Call:
        """Return the reply, or the call to be sent to the gateway."""
        try:
            known = self._region.settings
            if known is None:
                return _problem(call, 503, "the region is not known before the first enrolment")
            body = _body(call)
            if call.path == STORE:
                return self._store(attempt, call, body, known)
            return self._load(attempt, call, body, known)
        except Violation as violation:
            return _problem(call, 422, str(violation))
        except StoreError as error:
            log.warning("xcom.no_url", item_id=str(attempt.grant.item_id), detail=str(error))
            return _problem(call, 503 if error.transient else 500, str(error))

    def _store(self, attempt: Attempt, call: Call, body: dict[str, object], known: RegionSettings) -> Reply:
        if xcoms.SECTION not in known.task_options:
            return _problem(call, 409, f"region {known.region} stores no XComs: it has no xcom_inline_bytes")
        size, sha256, ti = body.get("size"), body.get("digest"), attempt.grant.ti
        if type(size) is not int or not 0 <= size <= xcoms.MAX_BYTES or not isinstance(sha256, str):
            raise Violation(_PLACE, f"{str(size)[:20]} bytes", f"a digest, and up to {xcoms.MAX_BYTES} bytes")
        # From the grant, not from the task: no task writes beneath another's name.
        name = ObjectName.of(str(ti["dag_id"]), str(ti["run_id"]), attempt.grant.item_id, sha256)
        headers = {
            "content-length": str(size),
            "x-amz-checksum-sha256": base64.b64encode(bytes.fromhex(sha256)).decode(),
        }
        url = self._region.logs().write_url(name.key, xcoms.URL_SECONDS, headers)
        return _reply(call, {"url": url, "headers": headers, "region": known.region, "object": name.key})

    def _load(
        self, attempt: Attempt, call: Call, body: dict[str, object], known: RegionSettings
    ) -> Reply | Call:
        name, region = ObjectName.parse(str(body.get("object"))), str(body.get("region"))
        if region == known.region and name.dag_id == str(attempt.grant.ti["dag_id"]):
            url = self._region.logs().read_url(name.key, xcoms.URL_SECONDS)
            return _reply(call, {"url": url, "headers": {}, "region": region, "object": name.key})
        return Call(call.id, "GET", f"{GRANTED}/{quote(region, safe='')}/{quote(name.key)}")


def _body(call: Call) -> dict[str, object]:
    body = json.loads(call.body or "null")
    if not isinstance(body, dict):
        raise Violation(_PLACE, f"a {type(body).__name__}", "an object")
    return body


def _reply(call: Call, value: dict[str, object]) -> Reply:
    return Reply(call.id, 200, _JSON, json.dumps(value))


def _problem(call: Call, status: int, message: str) -> Reply:
    return Reply(call.id, status, _JSON, json.dumps({"detail": {"reason": "airbridge", "message": message}}))
