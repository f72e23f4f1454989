from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airbridge.core.exceptions import EnvironmentRefused
from airbridge.executor.bundles.environments import platform_packages
from airbridge.executor.bundles.environments.requirements import find, parse

HASH = "sha256:" + "a" * 64


def refused(text: str) -> str:
    with pytest.raises(EnvironmentRefused) as caught:
        parse("requirements.txt", text)
    return str(caught.value)


def test_lines_are_read() -> None:
    """Names, extras, versions, markers, comments, continued lines and hashes are what pip reads of them."""
    text = f'# ours\nPandas[aws]==2.2.3 ; python_version >= "3.11"  # why\n\npolars==1 \\\n    --hash={HASH} \\\n    --hash={HASH}\n'
    pandas, polars = parse("requirements.txt", text)
    assert (pandas.name, pandas.number, pandas.hashes) == ("pandas", 2, ())
    assert (polars.name, polars.number, polars.hashes) == ("polars", 4, (HASH, HASH))


@pytest.mark.parametrize(
    "line",
    [
        "-e .", "--index-url https://evil.example/simple", "-r other.txt", "-c other.txt", "--find-links /etc",
        "--no-binary :all:", "./local", "../up", "/etc/passwd", "pkg.whl", "git+https://evil.example/x.git",
        "pkg @ file:///etc/passwd", "pkg @ git+https://evil.example/x.git", "https://evil.example/x.whl",
        "pkg --config-settings=a=b", "pkg==1 --hash=md5:abc", "pkg==1 --hash=sha256:xyz", "-", "\x00",
    ],
)  # fmt: skip
def test_hostile_line_is_refused(line: str) -> None:
    """What would have the installer read something else, or take an option, is refused with its line."""
    assert "requirements.txt:2: " in refused(f"good==1\n{line}\n")


def test_credentials_are_not_shown() -> None:
    """A refused URL is named without its user and password."""
    assert "s3cret" not in refused("pkg @ https://me:s3cret@index.example/pkg.whl\n")


def test_all_faults_are_named() -> None:
    """Every line that is refused is named at once."""
    error = refused("-e .\ngood==1\n./x\n")
    assert "requirements.txt:1:" in error
    assert "requirements.txt:3:" in error


def test_two_sources_are_refused(tmp_path: Path) -> None:
    """A bundle with requirements.txt and uv.lock has to drop one: which one counts is not guessed."""
    for name in ("requirements.txt", "pyproject.toml", "uv.lock"):
        (tmp_path / name).write_text("")
    with pytest.raises(EnvironmentRefused, match=r"uv\.lock: the bundle has requirements\.txt too"):
        find(tmp_path)


def test_foreign_link_is_no_source(tmp_path: Path) -> None:
    """A link that leaves the bundle is not read."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "secret").write_text("pandas\n")
    (tmp_path / "bundle" / "requirements.txt").symlink_to(tmp_path / "secret")
    assert find(tmp_path / "bundle") is None


def test_pyproject_alone_is_no_source(tmp_path: Path) -> None:
    """A pyproject.toml without a lock configures tools, and names no environment."""
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\n")
    assert find(tmp_path) is None


def test_worker_roots_are_its_dependencies() -> None:
    """What every worker is assumed to have is what its distribution requires, and Airflow."""
    project = tomllib.loads(Path("edge_worker/pyproject.toml").read_text())["project"]
    required = {str(canonicalize_name(Requirement(each).name)) for each in project["dependencies"]}
    assert set(platform_packages.WORKER_ROOTS) == required | {"apache-airflow"}
    assert (
        {"apache-airflow-core", "pendulum"}
        <= platform_packages.on_workers()
        <= set(platform_packages.installed())
    )
