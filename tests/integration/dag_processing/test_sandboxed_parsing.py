"""DAG files are parsed by processes that hold no secret and reach nothing; a hostile file cannot end the dag-processor."""

from __future__ import annotations

import io
import os
import selectors
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import structlog
from tests.security.attacks import dag_files

from airbridge.control_plane.dag_processing import sandboxed_processor
from airbridge.control_plane.dag_processing.serialized_dags import SerializedDagCheck
from airbridge.control_plane.dag_processing.zygote_client import ZygoteClient
from airbridge.core.sandbox import hardening
from airbridge.executor.bundles import parse_environment

# Distinct marks, so that a failure shows which secret was found.
SECRETS = ("fernet-hunter2", "database-hunter2", "jwt-hunter2", "own-hunter2")
GOOD = "from airflow.sdk import DAG\nwith DAG('good', schedule=None):\n    pass\n"


class FakeClient:
    """The part of the Execution API that a parse uses; records the requested names."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.variables = SimpleNamespace(get=self._variable, set=self._write, delete=self._write)
        self.connections = SimpleNamespace(get=self._connection)

    def _variable(self, key: str) -> Any:
        from airflow.sdk.api.datamodels._generated import VariableResponse

        self.asked.append(key)
        return VariableResponse(key=key, value="told")

    def _connection(self, conn_id: str) -> Any:
        from airflow.sdk.api.datamodels._generated import ConnectionResponse

        self.asked.append(conn_id)
        return ConnectionResponse(conn_id=conn_id, conn_type="http", password="told")

    def _write(self, key: str, *_: Any) -> Any:
        self.asked.append(f"write {key}")


class Processor:
    """A dag-processor with one bundle."""

    def __init__(self, bundle: Path, *, variables: tuple[str, ...] = ()) -> None:
        self.bundle = bundle
        self.zygote = ZygoteClient(partial(parse_environment.of, os.environ), required=True, cpu_seconds=20)
        self.client = FakeClient()
        self.log = io.BytesIO()
        rules = sandboxed_processor.Rules(variables, (), SerializedDagCheck.installed())
        self._class = sandboxed_processor.processor_class(self.zygote, rules)
        self.selector = selectors.DefaultSelector()

    def start(self, name: str, code: str) -> Any:
        file = self.bundle / name
        file.write_text(code)
        return self._class.start(
            id=uuid4(), path=file, bundle_path=self.bundle, callbacks=[], selector=self.selector, client=self.client,
            logger=structlog.wrap_logger(structlog.BytesLogger(self.log), processors=[structlog.processors.JSONRenderer(serializer=lambda *a, **k: repr(a).encode())]),
            logger_filehandle=self.log,
        )  # fmt: skip

    def finish(self, proc: Any, seconds: float = 60.0) -> Any:
        """Serve the process's sockets, as the manager's loop does, to its end; return the result."""
        deadline = time.monotonic() + seconds
        while not proc.is_ready:
            assert time.monotonic() < deadline, "the process does not end"
            for key, _ in self.selector.select(timeout=0.2):
                handler, on_close = key.data
                if not handler(key.fileobj):
                    on_close(key.fileobj)
                    key.fileobj.close()
        return proc.parsing_result

    def parse(self, name: str, code: str) -> Any:
        return self.finish(self.start(name, code))

    def errors(self, name: str, code: str) -> str:
        result = self.parse(name, code)
        assert result is not None, self.log.getvalue()[-2000:]
        return "\n".join((result.import_errors or {}).values())


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processor]:
    """A dag-processor whose environment, configuration and memory hold secrets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__FERNET_KEY", SECRETS[0])
        patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"postgresql://u:{SECRETS[1]}@127.0.0.1/x")
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", SECRETS[2])
        # A variable whose name does not look like a secret's: only named variables are passed on.
        patch.setenv("INNOCENT", SECRETS[3])
        hardening.harden()
        found = Processor(tmp_path_factory.mktemp("bundle"), variables=("public_*",))
        yield found
        found.zygote.stop()
        hardening.soften()


def test_hostile_file_reaches_nothing(processor: Processor, tmp_path: Path) -> None:
    """No secret in environment, memory, configuration or descriptors; no process, no file, no network, no namespace."""
    closed = [tmp_path / "ca.key", tmp_path / "airflow.cfg", processor.bundle.parent / "elsewhere"]
    for path in closed:
        path.write_text(SECRETS[0])
    before = [path.stat() for path in closed]
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = dag_files.hostile(
            marks=list(SECRETS), closed=[str(path) for path in closed], port=server.getsockname()[1]
        )
        assert "reached" not in processor.errors("hostile.py", code)
    assert [path.stat() for path in closed] == before
    assert processor.client.asked == []


def test_deep_directories_end_nothing(processor: Processor) -> None:
    """What a DAG file leaves in its scratch directory, however deep, does not end the zygote."""
    deep = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\n"
    assert processor.errors("good.py", GOOD) == ""
    zygote = processor.zygote.pid
    processor.parse("deep.py", deep + GOOD)
    assert processor.errors("good.py", GOOD) == ""
    assert zygote == processor.zygote.pid


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Airflow leaves its sockets to the collector
def test_same_file_succeeds_under_airflow(processor: Processor, tmp_path: Path) -> None:
    """In a process that Airflow itself forks, the same attempts succeed: they are real attacks."""
    from airflow.dag_processing.processor import DagFileProcessorProcess

    class Plain(DagFileProcessorProcess):  # type: ignore[misc] # Airflow publishes no types
        pass

    closed = tmp_path / "ca.key"
    closed.write_text(SECRETS[0])
    (sandboxed, processor._class) = (processor._class, Plain)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            code = dag_files.hostile(marks=list(SECRETS), closed=[str(closed)], port=server.getsockname()[1])
            text = processor.errors("hostile_plain.py", code)
    finally:
        processor._class = sandboxed
        processor.client.asked.clear()
    for name in (
        "own memory",
        "own environment",
        "TCP",
        "unix sockets",
        f"read {closed}",
        f"mode of {closed}",
        "connection",
    ):
        assert name in text


def test_ordinary_file_is_parsed(processor: Processor) -> None:
    """DAGs come out, with the file's own modules, its threads, temporary files, programs and asyncio."""
    (processor.bundle / "helper_of_mine.py").write_text("NAME = 'with_helper'\n")
    code = (
        "import asyncio, concurrent.futures, subprocess, sqlite3, tempfile, helper_of_mine\n"
        "from airflow.sdk import DAG\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "list(concurrent.futures.ThreadPoolExecutor(2).map(len, ['a']))\n"
        "assert subprocess.run(['echo', 'x'], capture_output=True).stdout == b'x\\n'\n"
        "with tempfile.TemporaryFile() as file:\n    file.write(b'x')\n"
        "sqlite3.connect(':memory:').execute('select 1')\n"
        "with DAG(helper_of_mine.NAME, schedule=None):\n    pass\n"
    )
    result = processor.parse("ordinary.py", code)
    assert result.import_errors == {}
    assert [dag.dag_id for dag in result.serialized_dags] == ["with_helper"]


def test_named_variables_can_be_read(processor: Processor) -> None:
    """``parse_variables`` opens names; others are refused with what would open them."""
    code = "from airflow.sdk import DAG, Variable\nwith DAG(Variable.get('{}'), schedule=None):\n    pass\n"
    result = processor.parse("public.py", code.format("public_x"))
    assert [dag.dag_id for dag in result.serialized_dags] == ["told"]
    assert "parse_variables" in processor.errors("private.py", code.format("private_x"))
    assert processor.client.asked == ["public_x"]
    processor.client.asked.clear()


BREAKING = {
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "crashes": "import ctypes\nctypes.string_at(0)\n",
    "log line that is no object": "import os\n[os.write(fd, b'[]\\n') for fd in range(3, 20) if not os.set_inheritable]\nimport os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, b'[]\\n')\n    except OSError:\n        pass\n",
    "log line of an unknown level": "import os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, b'{\"level\": \"x\"}\\n')\n    except OSError:\n        pass\n",
    # A message's length is its first four bytes.
    "frame of four gigabytes": "import os\nos.write(0, b'\\xff\\xff\\xff\\xff' + b'x' * 100)\n",
    "frame that is no message": "import os\nos.write(0, b'\\0\\0\\0\\4abcd')\n",
    "eats memory": "x = []\nwhile True:\n    x.append(bytearray(64 * 1024 * 1024))\n",
    # beyond SIGXCPU only the hard limit's SIGKILL ends it
    "spins": "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKING)
def test_breaking_file_ends_itself_alone(processor: Processor, name: str) -> None:
    """Its process ends within bounds; the next file is parsed, by the same zygote."""
    zygote = processor.zygote.pid
    processor.parse("breaking.py", "from airflow.sdk import DAG\n" + BREAKING[name])
    assert [dag.dag_id for dag in processor.parse("good.py", GOOD).serialized_dags] == ["good"]
    # The pid is 0 before the first parse.
    assert processor.zygote.pid == zygote or not zygote


def test_nothing_outlives_its_file(processor: Processor) -> None:
    """Processes that a DAG file leaves behind, in the background or detached, are killed with it."""
    # A duration that no other process on this machine sleeps for.
    mark = f"sleep 98{os.getpid()}"
    code = f"import subprocess\nsubprocess.Popen(['sh', '-c', '{mark} & nohup setsid {mark}'])\n" + GOOD
    processor.parse("leaves.py", code)
    time.sleep(0.5)
    left = [
        path.name for path in Path("/proc").iterdir()
        if path.name.isdigit() and mark.encode() in _read(path / "cmdline").replace(b"\0", b" ")
    ]  # fmt: skip
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_file_can_be_killed(processor: Processor) -> None:
    """The manager's timeout kills a process of the zygote's as it kills one of its own."""
    proc = processor.start("hangs.py", "from airflow.sdk import DAG\nimport time\ntime.sleep(60)\n")
    proc.kill(signal.SIGKILL)
    assert proc._check_subprocess_exit() == -signal.SIGKILL
    assert [dag.dag_id for dag in processor.parse("good.py", GOOD).serialized_dags] == ["good"]


def test_zygote_that_died_is_replaced(processor: Processor) -> None:
    """After kill -9 of the zygote the next file starts another."""
    processor.parse("good.py", GOOD)
    os.kill(processor.zygote.pid, signal.SIGKILL)
    assert [dag.dag_id for dag in processor.parse("good.py", GOOD).serialized_dags] == ["good"]


def test_gadget_is_an_import_error(processor: Processor) -> None:
    """A forged DAG that a hostile process sends to be stored, past the serialiser, is rejected in the dag-processor."""
    code = GOOD + (
        "from airflow.serialization.serialized_objects import SerializedDAG\n"
        "real = SerializedDAG.to_dict.__func__\n"
        "def forged(cls, dag):\n"
        "    data = real(cls, dag)\n"
        "    data['dag']['fileloc'] = '/proc/self/environ'\n"
        "    return data\n"
        "SerializedDAG.to_dict = classmethod(forged)\n"
    )
    result = processor.parse("forged.py", code)
    assert result.serialized_dags == []
    (text,) = result.import_errors.values()
    assert "DAG 'good' is refused: dag.fileloc: '/proc/self/environ'" in text
