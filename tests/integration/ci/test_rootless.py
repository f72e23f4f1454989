"""Images without root, as the hosted runner's user builds them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airbridge.ci.tools import run

NEEDED = ("buildah", "skopeo", "setpriv")
COPY = """
import sys
from pathlib import Path
from airbridge.ci.images.build import from_storage
from airbridge.ci.tools import run
print(from_storage(run, "localhost/small", Path(sys.argv[1])).digest)
"""
# On Ubuntu 24.04, AppArmor lets buildah make a user name space, and skopeo none.
SKOPEO = """#!/bin/sh
[ "$(id -u)" = 0 ] || { echo "Error during unshare(CLONE_NEWUSER): Operation not permitted" >&2; exit 1; }
exec %s "$@"
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users reach: pytest's own are closed to them, at a depth that differs with the number of workers."""
    with tempfile.TemporaryDirectory(prefix="airbridge-rootless-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.skipif(any(shutil.which(each) is None for each in NEEDED), reason="make images-tools")
def test_image_leaves_storage_without_root(open_folder: Path) -> None:
    """An image of the local storage is written to a folder where skopeo itself may make no user name space."""
    home = open_folder / "home"
    (home / ".config/containers").mkdir(parents=True)
    (home / ".config/containers/storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{home}/run"\ngraphroot = "{home}/storage"\n'
        '[storage.options]\nignore_chown_errors = "true"\n'
    )
    (home / "hello").write_text("hello\n")
    (home / "Dockerfile").write_text("FROM scratch\nCOPY hello /hello\n")
    (home / "written.py").write_text(COPY)
    (home / "bin").mkdir()
    (home / "bin/skopeo").write_text(SKOPEO % shutil.which("skopeo"))
    (home / "bin/skopeo").chmod(0o755)
    run("chown", "--recursive", "nobody", home)
    variables = {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--")

    def attempt(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*as_nobody, *words], env=variables, cwd=home, capture_output=True, text=True, check=False
        )

    def nobody(*words: str) -> str:
        done = attempt(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    if attempt(sys.executable, "-c", "import airbridge.ci").returncode:
        pytest.skip("this checkout is closed to other users")
    if attempt("unshare", "--user", "true").returncode:
        pytest.skip("this machine has no user name spaces for users")
    nobody("buildah", "build", "--quiet", "--format", "docker", "--tag", "localhost/small", ".")
    assert nobody(sys.executable, "written.py", str(home / "image")).startswith("sha256:")
    assert (home / "image/manifest.json").is_file()
