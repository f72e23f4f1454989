from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.bundles.conftest import Processor
from tests.support.airflow_home import Metadata
from tests.support.cloud import Cloud, ledger_store, write_dag, write_publishing_key

from airbridge.control_plane.dags import (
    CONTENT_TYPE,
    Publisher,
    Pushed,
    PushTerms,
    check_configured,
    publisher,
    push,
)
from airbridge.core.code.snapshot import pack
from airbridge.core.exceptions import BundleError, BundleRefused
from airbridge.core.sandbox import landlock
from airbridge.executor.bundles.check import TreeCheck
from airbridge.executor.bundles.store import BundleStore
from airbridge.executor.settings import Settings


@pytest.fixture
def configured(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = [
        {"name": "pushed", "classpath": "x", "kwargs": {"source": {"kind": "push"}}},
        {"name": "main", "classpath": "x", "kwargs": {"source": {"kind": "folder", "path": "/srv/dags"}}},
        {"name": "other", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": {}},
    ]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))


@pytest.fixture
def publish(cloud: Cloud, tmp_path: Path, configured: None, sqlite_metadata: Metadata) -> Publisher:
    write_publishing_key(tmp_path)
    found = {"regions_file": str(cloud.catalogue_file), "secrets_dir": str(tmp_path)}
    return publisher(Settings.read(found.get))


class Gateway:
    """A client whose gateway is a function call away."""

    def __init__(self, publish: Publisher) -> None:
        self._publish = publish

    def put_bytes(self, path: str, content: bytes, content_type: str, sent: Callable[[int], None]) -> Any:
        assert content_type == CONTENT_TYPE
        bundle = path.removeprefix("dags/")
        sent(len(content))
        return {"bundle": bundle, **asdict(self._publish(bundle, content, "operator:ci"))}


class Watcher:
    """Takes note of nothing."""

    def packed(self, files: int, archive_bytes: int) -> None:
        assert files
        assert archive_bytes

    def sent(self, sent_bytes: int) -> None:
        assert sent_bytes


def pushed_from(folder: Path, publish: Publisher) -> Pushed:
    return push(Gateway(publish), folder, "pushed", Watcher())


def current(cloud: Cloud) -> Any:
    return ledger_store(cloud, "pushed", Path()).pointer().current


def test_pushed_and_refused(publish: Publisher, cloud: Cloud, dags: Path, processor: Processor) -> None:
    """A folder that parses becomes current in every region; one that does not is refused and leaves it so."""
    pushed = pushed_from(dags, publish)
    assert pushed.version == pack(dags).version
    assert (current(cloud).version, current(cloud).publisher) == (pushed.version, "operator:ci")
    archive = f"bundles/pushed/{pushed.version.removeprefix('sha256:')}.tar.gz"
    assert archive in cloud.keys("eu-west-1")
    assert archive in cloud.keys("us-east-1")

    (dags / "two.py").write_text("from airflow.sdk import DAG\n\nwith DAG(undefined):\n    pass\n")
    with pytest.raises(
        BundleRefused, match=r"two\.py:3: NameError: name 'undefined' is not defined"
    ) as caught:
        pushed_from(dags, publish)
    assert [(failure.file, failure.line) for failure in caught.value.failures] == [("two.py", 3)]
    assert current(cloud).version == pushed.version
    assert len(cloud.keys("eu-west-1")) == 1


def test_same_push_twice(publish: Publisher, cloud: Cloud, dags: Path) -> None:
    """Pushing what is current already changes nothing and answers with its version; only the first is checked."""
    first = pushed_from(dags, publish)
    assert first.check_seconds is not None
    assert first.check_seconds > 0
    before = current(cloud)
    assert pushed_from(dags, publish) == replace(first, check_seconds=None)
    assert current(cloud) == before


def test_any_tar_will_do(publish: Publisher, cloud: Cloud, dags: Path) -> None:
    """A CI job without the command line can send what `tar cz` makes: the version is that of the folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(dags, arcname="./")
    assert publish("pushed", buffer.getvalue(), "ci").version == pack(dags).version


def test_push_notifies_dag_processor(publish: Publisher, dags: Path, sqlite_metadata: Metadata) -> None:
    """After a push the dag-processor's next look refreshes the bundle, whatever its interval."""
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils import timezone

    with sqlite_metadata.session() as session:
        session.add(DagBundleModel(name="pushed"))
        session.query(DagBundleModel).update({"last_refreshed": timezone.utcnow()})
        session.commit()
    pushed_from(dags, publish)
    with sqlite_metadata.session() as session:
        assert session.get(DagBundleModel, "pushed").last_refreshed is None


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        ("nosuch", r"no bundle 'nosuch'.*main, other, pushed"),
        ("main", r"takes its code from folder /srv/dags, not from pushes"),
        ("other", r"'other' is not an AirBridge bundle"),
    ],
)
def test_bundles_that_take_no_push(configured: None, bundle: str, message: str) -> None:
    """A push to a bundle that takes none is refused with what there is."""
    with pytest.raises(BundleError, match=message):
        check_configured(bundle)


def test_junk_is_refused_before_anything_runs(publish: Publisher, cloud: Cloud) -> None:
    """Bytes that are no archive are refused, and so is one that reaches out of its folder."""
    with pytest.raises(BundleError, match="not a tar"):
        publish("pushed", b"junk", "ci")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        # Python's tarfile would write it outside of the folder.
        tar.addfile(tarfile.TarInfo("../../etc/cron.d/x"))
    with pytest.raises(BundleError, match="plain relative path"):
        publish("pushed", buffer.getvalue(), "ci")
    assert cloud.keys("us-east-1") == []


def test_last_of_two_pushes_stays(cloud: Cloud, dags: Path, tmp_path: Path) -> None:
    """Two pushes at once both succeed; the later one is current."""
    write_dag(tmp_path / "rival", "rival.py", "rival")
    rival = pack(tmp_path / "rival")

    class Raced(BundleStore):
        def publish(self, snapshot: Any, actor: str, seen: Any, **kwargs: Any) -> Any:
            # The rival publishes between this publisher's read of the pointer and its own publication.
            if self.pointer().version is None:
                super().publish(rival, "rival", seen)
            return super().publish(snapshot, actor, seen, **kwargs)

    publish = Publisher(
        lambda bundle: Raced.of(bundle, cloud.catalogue, cloud.registry),
        lambda _: None,
        check=TreeCheck(environment={}),
    )
    snapshot = pack(dags)
    assert publish._publish(Raced.of("pushed", cloud.catalogue, cloud.registry), snapshot, PushTerms("ci"))
    found = cloud.store("pushed").pointer().current
    assert found is not None
    assert (found.version, found.previous) == (snapshot.version, rival.version)


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_pushed_code_is_sandboxed(publish: Publisher, tmp_path: Path) -> None:
    """It is run to be parsed, on the gateway's host and as its user: it reads no key, sees no process, has no network,
    writes nowhere but its scratch directory, and finds no secret in its environment."""
    secret = tmp_path / "ca.key"
    secret.write_text("a key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        attack = f"""
import os, signal, socket
from pathlib import Path
from airflow.sdk import DAG

def works(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True

GATEWAY = {os.getpid()}
FOUND = [name for name, attempt in {{
    "key": lambda: Path({str(secret)!r}).read_bytes(),
    "its folder": lambda: os.listdir({str(tmp_path)!r}),
    "memory": lambda: open(f"/proc/{{GATEWAY}}/mem", "rb"),
    "working directory": lambda: os.listdir(f"/proc/{{GATEWAY}}/cwd"),
    "descriptors": lambda: os.readlink(f"/proc/{{GATEWAY}}/fd/0"),
    "signal": lambda: os.kill(GATEWAY, signal.SIGCONT),
    "network": lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=5),
    "listening": lambda: socket.create_server(("127.0.0.1", 0)),
    "write": lambda: Path("/var/tmp/airbridge-planted").write_text("x"),
    "write code": lambda: Path(__file__).write_text("x"),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "datagrams": lambda: socket.socket(type=socket.SOCK_DGRAM),
    "mode": lambda: os.chmod({str(secret)!r}, 0o777),
    "times": lambda: os.utime({str(secret)!r}, (1, 1)),
    "own session": os.setsid,
}}.items() if works(attempt)] + [name for name in os.environ if "SECRET" in name]
if FOUND:
    raise RuntimeError(f"reached: {{FOUND}}")
with DAG("harmless", schedule=None):
    pass
"""
        folder = tmp_path / "hostile"
        folder.mkdir()
        (folder / "hostile.py").write_text(attack)
        publish("pushed", pack(folder).compressed(), "test")
