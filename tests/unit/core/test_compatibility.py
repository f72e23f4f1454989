"""The compatibility matrix: its verdicts on workers, and their reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from airbridge.core.compatibility import Matrix, Verdict, load, parse
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import Versions

TEXT = """
schema = 1
outside = "refuse"

[[compatible]]
control_plane = "==0.2.*"
worker = "==0.2.*"
protocol = [1, 2]
airflow = "==3.0.4"
task_sdk = "==1.0.4"
python = ">=3.11,<3.13"

[[compatible]]
control_plane = "==0.2.*"
worker = "==0.1.*"
protocol = [1]
airflow = "==3.0.4"
task_sdk = "==1.0.4"
python = ">=3.11,<3.13"
verdict = "drain"
"""
DIGEST = "sha256:" + "a" * 64


def worker(**changes: object) -> Versions:
    """A worker of the matrix above's newest version, with `changes`."""
    fields = {
        "airbridge": "0.2.1",
        "airflow": "3.0.4",
        "task_sdk": "1.0.4",
        "python": "3.12.7",
        "protocol": 2,
    }
    return Versions.model_validate(fields | changes)


@pytest.fixture
def matrix() -> Matrix:
    return parse(TEXT, "compatibility.toml")


def test_pair_inside_matrix_is_allowed(matrix: Matrix) -> None:
    """A worker that meets an entry in full gets work."""
    judgement = matrix.judge("0.2.0", worker())
    assert judgement.verdict == Verdict.ALLOW
    assert judgement.may_enrol
    assert judgement.may_claim


def test_a_retiring_version_drains(matrix: Matrix) -> None:
    """An entry may have the verdict drain: such a worker keeps its identity and gets no work."""
    judgement = matrix.judge("0.2.0", worker(airbridge="0.1.9", protocol=1))
    assert judgement.verdict == Verdict.DRAIN
    assert judgement.may_enrol
    assert not judgement.may_claim


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"airbridge": "0.3.0"}, "AirBridge is 0.3.0, must be ==0.2.*"),
        ({"airflow": "3.0.5"}, "Airflow is 3.0.5, must be ==3.0.4"),
        ({"task_sdk": "1.0.5"}, "the Task SDK is 1.0.5, must be ==1.0.4"),
        ({"python": "3.13.0"}, "Python is 3.13.0, must be >=3.11,<3.13"),
        ({"protocol": 3}, "the protocol is 3, must be 1 or 2"),
        ({"airbridge": "not a version"}, "AirBridge is not a version, must be ==0.2.*"),
    ],
)
def test_worker_outside_is_refused_with_reason(matrix: Matrix, changes: dict[str, object], says: str) -> None:
    """The detail names what is wrong and what would be right, by the entry that comes nearest."""
    judgement = matrix.judge("0.2.0", worker(**changes))
    assert judgement.verdict == Verdict.REFUSE
    assert says in judgement.detail
    assert not judgement.may_enrol


def test_version_of_too_many_digits_is_refused(matrix: Matrix) -> None:
    """A number that Python does not read is outside every range, as any other malformed version is."""
    hostile = worker().model_copy(update={"airbridge": "1" * 5000})
    assert matrix.judge("0.2.0", hostile).verdict == Verdict.REFUSE


def test_an_unknown_control_plane_is_outside(matrix: Matrix) -> None:
    """A control plane that the file does not mention grants nothing, and the detail names it."""
    judgement = matrix.judge("0.9.0", worker())
    assert judgement.verdict == Verdict.REFUSE
    assert "no entry for a control plane of version 0.9.0" in judgement.detail


def test_worker_of_another_image_is_refused(matrix: Matrix) -> None:
    """If releases pin digests, a worker with another image is refused in spite of its versions."""
    assert matrix.judge("0.2.0", worker(image=DIGEST), [DIGEST]).may_claim
    for image in (None, "sha256:" + "b" * 64):
        judgement = matrix.judge("0.2.0", worker(image=image), [DIGEST])
        assert judgement.verdict == Verdict.REFUSE
        assert DIGEST in judgement.detail


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('worker = "==0.1.*"', 'worker = "0.1"', "compatible.1.worker"),
        ("schema = 1", "schema = 2", "schema"),
        ('outside = "refuse"', 'outside = "allow"', "outside"),
        ("protocol = [1]", "protocol = []", "compatible.1.protocol"),
        ('verdict = "drain"', 'verdicts = "drain"', "compatible.1.verdicts"),
        ('worker = "==0.1.*"', 'worker = ""', "empty range"),
        ("schema = 1", "schema = ", "compatibility.toml"),
    ],
)
def test_error_names_file_and_key(old: str, new: str, says: str) -> None:
    """Every error of a compatibility file names the file and the key."""
    with pytest.raises(ConfigurationError) as caught:
        parse(TEXT.replace(old, new), "compatibility.toml")
    assert says in str(caught.value)
    assert "compatibility.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere is in the message."""
    with pytest.raises(ConfigurationError, match=r"absent\.toml"):
        load(tmp_path / "absent.toml")


def test_the_projects_own_matrix_loads() -> None:
    """The file at the root is valid."""
    assert load(Path(__file__).parents[3] / "compatibility.toml").compatible
