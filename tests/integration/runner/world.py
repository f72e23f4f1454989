"""A runner on its own: a fake proxy that answers like Airflow's Task Execution API, and DAG files on disk."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote
from uuid import UUID, uuid4

from airbridge.core.protocol import BundleRef, Grant, Resources, StartedAs
from airbridge.edge_worker.proxy import protocol
from airbridge.edge_worker.proxy.protocol import Call, Cancel, Reply
from airbridge.edge_worker.runner.running_task import WarmTask
from airbridge.edge_worker.runner.settings import RunnerSettings
from airbridge.edge_worker.runner.warm_runner import WarmRunner
from airbridge.edge_worker.work.task import Exit, TaskSpec

T = TypeVar("T")
NOW = "2025-08-10T12:00:00Z"


@dataclass
class FakeApi:
    """Task Execution API behind the proxy: XComs, variables and connections, and every call made."""

    xcoms: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    connections: dict[str, dict[str, Any]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """Per path prefix: statuses to answer with before behaving."""
    denied: dict[str, str] = field(default_factory=dict)
    """Per path: the policy's message, as the gateway puts it."""
    secret_places: list[str] = field(default_factory=lambda: ["region"])
    """Places in which the gateway lets secrets be read."""

    def answer(self, call: Call) -> Reply:
        for prefix, statuses in self.statuses.items():
            if call.path.startswith(prefix) and statuses:
                return _json(call, statuses.pop(0), {"detail": {"reason": "made_up", "message": "no"}})
        if call.path in self.denied:
            detail = {"reason": "forbidden", "message": self.denied[call.path]}
            return _json(call, 403, {"detail": detail})
        head, _, rest = call.path.partition("/")
        reply: Reply = getattr(self, f"_{head.replace('-', '_')}")(call, unquote(rest))
        return reply

    def _task_instances(self, call: Call, rest: str) -> Reply:
        if rest.endswith("validate-inlets-and-outlets"):
            return _json(call, 200, {"inactive_assets": []})
        if rest.endswith("previous-successful-dagrun"):
            return _json(call, 200, {"start_date": NOW})
        return Reply(call.id, 201 if rest.endswith("rtif") else 204)

    def _xcoms(self, call: Call, rest: str) -> Reply:
        if call.method == "POST":
            self.xcoms[rest] = call.body or "null"
            return _json(call, 201, {"message": "XCom successfully set"})
        if call.method == "DELETE":
            self.xcoms.pop(rest, None)
            return _json(call, 200, {"message": "gone"})
        found = self.xcoms.get(rest.removesuffix("/slice"))
        if rest.endswith("/slice"):
            return _json(call, 200, [json.loads(found)] if found is not None else [])
        if found is None:
            return _json(call, 404, {"detail": {"reason": "not_found", "message": "no such XCom"}})
        return _json(call, 200, {"key": rest.rsplit("/", 1)[-1], "value": json.loads(found)})

    def _dag_runs(self, call: Call, rest: str) -> Reply:
        if rest.endswith("/clear") and call.body:
            return _json(call, 422, {"detail": {"reason": "invalid", "message": "a body"}})
        return Reply(call.id, 204)

    def _variables(self, call: Call, rest: str) -> Reply:
        if rest not in self.variables:
            return _json(call, 404, {"detail": {"reason": "not_found", "message": "no such variable"}})
        return _json(call, 200, {"key": rest, "value": self.variables[rest]})

    def _regional_secrets(self, call: Call, _rest: str) -> Reply:
        return _json(call, 200, {"places": self.secret_places})

    def _connections(self, call: Call, rest: str) -> Reply:
        if rest not in self.connections:
            return _json(call, 404, {"detail": {"reason": "not_found", "message": "no such connection"}})
        return _json(call, 200, {"conn_id": rest, **self.connections[rest]})


def _json(call: Call, status: int, body: object) -> Reply:
    return Reply(call.id, status, {"content-type": "application/json"}, json.dumps(body))


@dataclass
class FakeProxy:
    """The agent's end of one task's proxy socket."""

    sock: socket.socket
    api: FakeApi
    calls: list[Call] = field(default_factory=list)
    hold: str | None = None
    """Calls whose path starts so are never answered."""

    async def serve(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self.sock)
        try:
            while (call := await protocol.read_call(reader)) is not None:
                self.calls.append(call)
                if self.hold is None or not call.path.startswith(self.hold):
                    self._writer.write(protocol.encode(self.api.answer(call)))
        finally:
            self._writer.close()

    def cancel(self, reason: str, detail: str = "") -> None:
        self._writer.write(protocol.encode(Cancel(reason, detail)))

    def hang_up(self) -> None:
        self._writer.transport.abort()

    @property
    def states(self) -> list[str]:
        """The states that were reported, in order."""
        return [json.loads(call.body or "{}")["state"] for call in self.calls if call.path.endswith("/state")]

    def bodies(self, suffix: str) -> list[dict[str, Any]]:
        return [json.loads(call.body or "null") for call in self.calls if call.path.endswith(suffix)]

    def pushed(self, key: str = "return_value") -> Any:
        """The last value pushed as XCom under `key`."""
        found = [call.body for call in self.calls if call.method == "POST" and f"/{key}" in call.path]
        return json.loads(found[-1] or "null") if found else None


@dataclass
class Run:
    """One task that was started."""

    task: WarmTask
    proxy: FakeProxy
    log_file: Path
    serving: asyncio.Task[None]

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines()]

    async def ended(self, timeout: float = 60) -> Exit:
        exit_ = await asyncio.wait_for(self.task.wait(), timeout)
        # The exit may arrive before the last of the supervisor's calls has been read from the socket.
        await asyncio.wait_for(asyncio.gather(self.serving, return_exceptions=True), 10)
        return exit_


class World:
    """A runner, an event loop to drive it, and a folder to keep DAG code and logs in."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.options = settings.pop("options", {})
        self.api = FakeApi()
        self.loop = asyncio.new_event_loop()
        self.settings = RunnerSettings(
            airflow_home=folder / "airflow",
            worker_name="edge-7",
            # The tests' own level would reach the tasks, and their logs would lack what is looked for.
            agent_env={
                name: value for name, value in os.environ.items() if name != "AIRFLOW__LOGGING__LOGGING_LEVEL"
            },
            kill_grace_seconds=settings.pop("kill_grace_seconds", 1.0),
            hidden=(folder, *settings.pop("hidden", ())),
            **settings,
        )
        self.runner = self.loop.run_until_complete(self._started())

    async def _started(self) -> WarmRunner:
        runner = WarmRunner(self.settings)
        runner.configure(self.options, {})
        await runner.start()
        return runner

    async def configure(
        self, options: dict[str, dict[str, str]], variables: dict[str, str] | None = None
    ) -> None:
        """Change the options and variables of tasks, on the runner's event loop as the worker does."""
        self.runner.configure(options, variables or {})

    def close(self) -> None:
        self.loop.run_until_complete(self.runner.stop())
        self.loop.close()

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def write(self, code: str, name: str = "dag.py") -> Path:
        """Write a snapshot with one file and return its root, named by the digest of its content."""
        # A template is kept per snapshot: files with the same code share it, a changed file gets another.
        root = self.folder / "bundles" / sha256(code.encode()).hexdigest()
        root.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(code)
        return root

    async def spawn(
        self, root: Path, task_id: str, dag_id: str = "d", hold: str | None = None, **options: Any
    ) -> Run:
        spec = self.spec(root, task_id, dag_id, **options)
        ours, theirs = socket.socketpair()
        proxy = FakeProxy(ours, self.api, hold=hold)
        serving = asyncio.ensure_future(proxy.serve())
        task = await self.runner.spawn(spec, theirs)
        return Run(task, proxy, spec.log_file, serving)

    async def run(self, root: Path, task_id: str, **options: Any) -> Run:
        run = await self.spawn(root, task_id, **options)
        self.exit = await run.ended()
        return run

    def spec(
        self,
        root: Path,
        task_id: str,
        dag_id: str = "d",
        warm: bool = True,
        map_index: int = -1,
        try_number: int = 1,
        rel_path: str = "dag.py",
        environment: Path | None = None,
        slots: int = 1,
        resources: Resources | None = None,
        **context: Any,
    ) -> TaskSpec:
        item_id, ti_id = uuid4(), uuid4()
        ti = {
            "id": str(ti_id),
            "task_id": task_id,
            "dag_id": dag_id,
            "run_id": "manual__1",
            "try_number": try_number,
            "map_index": map_index,
            "pool_slots": 1,
            "queue": "default",
            "priority_weight": 1,
        }
        grant = Grant(
            item_id=item_id,
            ti_id=ti_id,
            epoch=1,
            lease_seconds=60,
            slots=slots,
            resources=resources or Resources(),
            ti=ti,
            ti_context=ti_context(dag_id, **context),
            start_date=datetime.now(tz=UTC),
            started_as=StartedAs(hostname="edge-7", unixname="airbridge", pid=1),
            dag_rel_path=rel_path,
            bundle=BundleRef(name="dags", version=f"sha256:{root.name}"),
            log_path="x.log",
        )
        log_file = self.folder / "logs" / f"{item_id}.log"
        log_file.parent.mkdir(exist_ok=True)
        return TaskSpec(
            item_id=item_id,
            epoch=1,
            grant=grant,
            bundle_path=root,
            log_file=log_file,
            warm=warm,
            environment=environment,
        )


def ti_context(dag_id: str, **changes: Any) -> dict[str, Any]:
    dag_run = {
        "dag_id": dag_id,
        "run_id": "manual__1",
        "logical_date": NOW,
        "data_interval_start": NOW,
        "data_interval_end": NOW,
        "start_date": NOW,
        "run_after": NOW,
        "run_type": "manual",
        "conf": {},
        "consumed_asset_events": [],
    }
    return {"dag_run": dag_run, "max_tries": 0, "should_retry": False, **changes}


def alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        # The name in parentheses may contain spaces and parentheses itself: the fields begin after the last one.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def uuid_of(run: Run) -> UUID:
    return UUID(run.log_file.stem)
