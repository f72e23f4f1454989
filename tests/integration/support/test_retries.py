"""Second attempts of failed tests over two xdist workers."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# Two workers take one test each in turn, so that neither has more than two flaky ones.
FLAKY = """
    import pathlib, pytest
    @pytest.mark.parametrize("number", range({count}))
    def test_it(number):
        mark = pathlib.Path(f"{{number}}.failed")
        failed, _ = mark.exists(), mark.touch()
        assert failed
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite that has the plugin, in processes of their own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini(
        "[pytest]\naddopts = -p tests.support.retries -p no:cacheprovider -p no:anyio -n 2 --dist loadgroup"
    )
    return pytester


def test_limit_is_per_run(suite: pytest.Pytester) -> None:
    """Three tests that two workers tried again pass one by one, and fail the run."""
    suite.makepyfile(FLAKY.format(count=3))
    ran = suite.runpytest_subprocess("--retries", "2")
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
    ran.assert_outcomes(passed=3)
    ran.stdout.fnmatch_lines(
        [
            "*FAILED: 3 tests were tried again, at most 2 may be*",
            "  test_*::test_*",
            "*3 passed, 3 retried in*",
        ]
    )


def test_two_workers_share_record(suite: pytest.Pytester) -> None:
    """One retried test a worker is within the limit, and both are printed and kept in the JUnit XML."""
    suite.makepyfile(FLAKY.format(count=2))
    ran = suite.runpytest_subprocess("--retries", "2", "--junit-xml", "junit.xml")
    assert ran.ret == pytest.ExitCode.OK
    ran.stdout.fnmatch_lines(["*second attempts: 2*"])
    assert (suite.path / "junit.xml").read_text().count('name="first_attempt"') == 2


def test_crashed_worker_fails_run(suite: pytest.Pytester) -> None:
    """A worker that dies in a test fails the run: the test is not tried again."""
    suite.makepyfile("import os\ndef test_it():\n    os._exit(3)\ndef test_other():\n    pass")
    ran = suite.runpytest_subprocess("--retries", "2")
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
    ran.stdout.fnmatch_lines(["*FAILED: a worker was lost*"])


def test_worker_crash_after_tests_fails(suite: pytest.Pytester) -> None:
    """A worker that dies after its last test fails the run too, which xdist alone lets pass."""
    suite.makeconftest(
        "import os, pytest\n@pytest.hookimpl(trylast=True)\ndef pytest_sessionfinish(session):\n"
        "    os.environ.get('PYTEST_XDIST_WORKER') == 'gw0' and os._exit(3)"
    )
    suite.makepyfile("def test_it():\n    pass\ndef test_other():\n    pass")
    assert suite.runpytest_subprocess("--retries", "2").ret != pytest.ExitCode.OK


def test_collection_error_fails_run(suite: pytest.Pytester) -> None:
    """A module that only some workers can import fails the run."""
    suite.makepyfile(
        test_broken="import os\nassert os.environ.get('PYTEST_XDIST_WORKER') != 'gw1'\ndef test_it():\n    pass"
    )
    assert suite.runpytest_subprocess("--retries", "2").ret not in {
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    }
