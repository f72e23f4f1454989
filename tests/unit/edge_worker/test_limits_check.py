"""The doctor's check of the limits of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from airbridge.edge_worker.ops import doctor
from airbridge.edge_worker.settings import WorkerSettings, load


def settings(tmp_path: Path, **changes: object) -> WorkerSettings:
    return load(
        None,
        gateway_url="https://localhost:1",
        ca_file=tmp_path / "ca",
        region="eu-west-1",
        state_dir=tmp_path / "state",
        join_token_file=tmp_path / "token",
        **changes,
    )


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({}, True),
        ({"slot_memory_mib": 512}, True),
        ({"slot_cpus": 1}, False),
        ({"slot_processes": 50}, False),
    ],
)
def test_limits_that_need_cgroups_fail_without(tmp_path: Path, changes: dict[str, object], ok: bool) -> None:
    """Without cgroups, limits of processors and processes cannot be held, which is a failure; that of memory can."""
    found = doctor.check_limits(settings(tmp_path, task_cgroups="off", **changes))
    assert (ok, "no cgroups: task_cgroups is 'off'") == (found.ok, found.detail.partition(".")[0])


def test_required_cgroups_are_checked(tmp_path: Path) -> None:
    """With task_cgroups 'require' the check passes only where there are cgroups; its detail has the limits of a slot."""
    found = doctor.check_limits(settings(tmp_path, task_cgroups="require", slot_memory_mib=512))
    assert found.ok == ("a slot has memory 512 MiB" in found.detail)
