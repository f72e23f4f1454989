"""The fork server: processes that it forks are as if they had been started by an exec, and end with the supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from airbridge.control_plane.local.process import fork_server
from airbridge.control_plane.local.process.child import Child, LocalChild
from airbridge.control_plane.local.process.component import Component
from airbridge.control_plane.local.process.forking import ForkedChild, Forking

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fork server needs Linux")

# Reports what a process has; then ends with status 3, or sleeps if it has an argument.
_PROBE = """
import json, os, sys, time
from pathlib import Path
print(json.dumps({
    "env": dict(os.environ), "cwd": os.getcwd(), "argv": sys.argv[1:], "path": sys.path[0], "name": __name__,
    "main": sys.modules["__main__"].__file__ == __file__, "parent": os.getppid(), "session": os.getsid(0),
    "files": sorted(os.listdir("/proc/self/fd"))[:-1], "airflow": "airflow" in sys.modules,
    "libcst": "libcst" in sys.modules, "title": Path("/proc/self/cmdline").read_text().split("\\0")[0],
}), flush=True)
if sys.argv[1:] == ["sleep"]:
    time.sleep(60)
sys.exit(3)
"""


def base(folder: Path) -> dict[str, str]:
    (folder / "probe.py").write_text(_PROBE)
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[Forking]:
    with Forking({**base(tmp_path), "ONLY_OF_THE_SERVER": "1"}, tmp_path / "fork-server.log") as started:
        yield started


def component(
    folder: Path, *arguments: str, env: Mapping[str, str] = {}, preloaded: bool = True
) -> Component:
    return Component(
        name="probe",
        argv=(sys.executable, "-m", "probe", *arguments),
        env={**base(folder), **env},
        log=folder / "probe.log",
        cwd=folder / "cwd",
        preloaded=preloaded,
    )


def ended(child: Child) -> int:
    deadline = time.monotonic() + 30
    while (status := child.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return status


def reported(folder: Path) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        lines = (folder / "probe.log").read_text().splitlines()
        if len(lines) > 1:
            found: dict[str, Any] = json.loads(lines[-1])
            return found
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_forked_like_an_exec(forking: Forking, tmp_path: Path) -> None:
    """A forked process has its own environment, directory, arguments, log and session, and nothing of the server's."""
    child = forking(component(tmp_path, "a", "b c", env={"SECRET": "its own"}))
    assert isinstance(child, ForkedChild)
    assert ended(child) == 3
    seen = reported(tmp_path)
    assert seen["env"] == {**base(tmp_path), "SECRET": "its own"}
    assert seen["cwd"] == seen["path"] == str(tmp_path / "cwd")
    assert seen["argv"] == ["a", "b c"]
    assert (seen["name"], seen["main"]) == ("__main__", True)
    assert (seen["parent"], seen["session"]) == (os.getpid(), child.pid)
    assert seen["files"] == ["0", "1", "2"]
    assert (seen["libcst"], seen["airflow"]) == (True, False)
    assert seen["title"] == f"{sys.executable} -m probe a b c"


def test_signals_and_group(forking: Forking, tmp_path: Path) -> None:
    """Signals reach a forked process, and its status says which one ended it."""
    child = forking(component(tmp_path, "sleep"))
    reported(tmp_path)
    assert child.poll() is None
    child.send(signal.SIGTERM)
    assert ended(child) == -signal.SIGTERM
    child.send(signal.SIGTERM)
    child.kill_group()


def test_others_are_executed(forking: Forking, tmp_path: Path) -> None:
    """A component that is not `preloaded`, or starts after `close`, is started by an exec."""
    for preloaded in (False, True):
        child = forking(component(tmp_path, preloaded=preloaded))
        assert isinstance(child, LocalChild)
        assert ended(child) == 3
        forking.close()


def test_broken_server_is_replaced_by_an_exec(tmp_path: Path) -> None:
    """Components start by an exec if the fork server cannot load, or ends before an order."""
    env = base(tmp_path)
    (tmp_path / "sitecustomize.py").write_text("import os\nif 'BREAKS' in os.environ: os._exit(1)\n")
    with Forking({**env, "BREAKS": "1"}, tmp_path / "fork-server.log") as forking:
        assert ended(forking(component(tmp_path))) == 3
    with Forking(env, tmp_path / "fork-server.log") as forking:
        assert isinstance(first := forking(component(tmp_path)), ForkedChild)
        assert ended(first) == 3
        assert forking._process is not None
        forking._process.kill()
        forking._process.wait()
        assert isinstance(second := forking(component(tmp_path)), LocalChild)
        assert ended(second) == 3


def test_ends_with_the_supervisor(tmp_path: Path) -> None:
    """Forked processes and the fork server are killed when the supervisor is."""
    (tmp_path / "supervise.py").write_text(
        "import sys, time\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_forking import base, component\n"
        "from airbridge.control_plane.local.process.forking import Forking\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "forking = Forking(base(folder), folder / 'fork-server.log').__enter__()\n"
        "child = forking(component(folder, 'sleep'))\n"
        "print(child.pid, forking._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "supervise.py")], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        supervisor.kill()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(pids) == 2


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_preloads_nothing_configured() -> None:
    """Every preloaded package exists; none of Airflow's or AirBridge's is loaded, nor fsspec, which reads HOME."""
    code = (
        "import importlib, sys\nfrom airbridge.control_plane.local.process import fork_server\n"
        "before = set(sys.modules)\nfor name in fork_server.PRELOADED: importlib.import_module(name)\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"airflow", "airbridge", "fsspec", "upath"} & set(done.stdout.split())
    assert "sqlalchemy" in done.stdout.split()


def test_order_survives_its_encoding() -> None:
    """An order is received as it was sent."""
    order = fork_server.Order("module", ("a", "b"), {"NAME": "ä"}, None, signal.SIGKILL)
    assert fork_server.Order.decode(order.encode()) == order
