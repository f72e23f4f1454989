"""Second attempts of failed tests within one process."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLAKY = """
    import pathlib

    def fails_first(name):
        mark = pathlib.Path(name + ".failed")
        failed, _ = mark.exists(), mark.touch()
        assert failed, "the first attempt of " + name
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite that has the plugin, and a helper that fails at its first call."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(flaky=FLAKY)
    pytester.makeconftest('pytest_plugins = ["tests.support.retries"]')
    pytester.makeini("[pytest]\npythonpath = .\naddopts = -p no:cacheprovider -p no:xdist")
    return pytester


def test_flaky_test_passes(suite: pytest.Pytester) -> None:
    """A test that passes at its second attempt passes, and its first attempt is printed at the end."""
    suite.makepyfile("import flaky\ndef test_it():\n    flaky.fails_first('it')")
    ran = suite.runpytest_inprocess("-p", "no:anyio", "--retries", "2")
    assert ran.ret == pytest.ExitCode.OK
    ran.assert_outcomes(passed=1)
    ran.stdout.fnmatch_lines(
        [
            "*second attempts: 1*",
            "*::test_it was tried again*",
            "*the first attempt of it*",
            "*1 passed, 1 retried in*",
        ]
    )


def test_retry_is_opt_in(suite: pytest.Pytester) -> None:
    """Without the option, and with `--no-retries` after it, a flaky test fails the run."""
    suite.makepyfile("import flaky\ndef test_it():\n    flaky.fails_first('it')")
    assert (
        suite.runpytest_inprocess("-p", "no:anyio", "--retries", "2", "--no-retries").ret
        == pytest.ExitCode.TESTS_FAILED
    )
    (suite.path / "it.failed").unlink()
    assert suite.runpytest_inprocess().ret == pytest.ExitCode.TESTS_FAILED


def test_broken_test_fails(suite: pytest.Pytester) -> None:
    """A test that fails twice fails the run, and is counted as one failure."""
    suite.makepyfile("def test_it():\n    assert 0")
    ran = suite.runpytest_inprocess("-p", "no:anyio", "--retries", "2")
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
    ran.assert_outcomes(failed=1)


def test_third_flaky_test_fails(suite: pytest.Pytester) -> None:
    """Two tests of a run are tried again, the third fails at once."""
    suite.makepyfile(
        "import flaky\n" + "".join(f"def test_{n}():\n    flaky.fails_first('{n}')\n" for n in "abc")
    )
    ran = suite.runpytest_inprocess("-p", "no:anyio", "--retries", "2")
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
    ran.assert_outcomes(passed=2, failed=1)


def test_collection_error_fails(suite: pytest.Pytester) -> None:
    """A module that cannot be imported fails the run, and is not tried again."""
    suite.makepyfile(test_broken="import flaky\nflaky.fails_first('import')")
    assert suite.runpytest_inprocess("-p", "no:anyio", "--retries", "2").ret == pytest.ExitCode.INTERRUPTED


def test_fixtures_keep_their_scope(suite: pytest.Pytester) -> None:
    """Each attempt has function fixtures and an instance of its own; both share the fixture of the module."""
    suite.makepyfile("""
        import flaky, pytest
        events = []
        @pytest.fixture(scope="module")
        def wide():
            events.append("wide up")
            yield
            events.append("wide down")
        @pytest.fixture
        def narrow(wide):
            events.append("narrow up")
            yield
            events.append("narrow down")
        class TestIt:
            def test_it(self, narrow):
                assert not hasattr(self, "used")
                self.used = True
                flaky.fails_first("it")
            def test_after(self):
                assert events == ["wide up"] + ["narrow up", "narrow down"] * 2
        """)
    suite.runpytest_inprocess("-p", "no:anyio", "--retries", "1").assert_outcomes(passed=2)


@pytest.mark.parametrize("scope", ["function", "module", "session"])
def test_failed_fixture_is_set_up_again(suite: pytest.Pytester, scope: str) -> None:
    """A fixture that failed is set up again, whatever its scope, and torn down once."""
    suite.makepyfile(f"""
        import flaky, pytest
        @pytest.fixture(scope="{scope}")
        def fixture():
            flaky.fails_first("fixture")
            yield 1
            print("torn down")
        def test_it(fixture):
            assert fixture == 1
        def test_next():
            pass
        """)
    ran = suite.runpytest_inprocess("-p", "no:anyio", "--retries", "1", "-s")
    ran.assert_outcomes(passed=2)
    assert ran.stdout.str().count("torn down") == 1


def test_failed_teardown_is_retried(suite: pytest.Pytester) -> None:
    """A test whose fixture fails to be torn down is tried again as a whole."""
    suite.makepyfile("""
        import flaky, pytest
        @pytest.fixture
        def fixture():
            yield
            flaky.fails_first("teardown")
        def test_it(fixture):
            pass
        """)
    ran = suite.runpytest_inprocess("-p", "no:anyio", "--retries", "1")
    assert ran.ret == pytest.ExitCode.OK
    ran.assert_outcomes(passed=1)


def test_junit_keeps_first_attempt(suite: pytest.Pytester, tmp_path: Path) -> None:
    """The JUnit XML has one case for the test, with what the first attempt failed of and printed."""
    suite.makepyfile("import flaky\ndef test_it():\n    print('OUTPUT')\n    flaky.fails_first('it')")
    suite.runpytest_inprocess("-p", "no:anyio", "--retries", "1", "--junit-xml", str(tmp_path / "junit.xml"))
    (case,) = ET.parse(tmp_path / "junit.xml").iter("testcase")
    (entry,) = case.iter("property")
    assert entry.get("name") == "first_attempt"
    assert "the first attempt of it" in str(entry.get("value"))
    assert "OUTPUT" in str(entry.get("value"))


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_second_attempt_has_own_timeout(suite: pytest.Pytester, method: str) -> None:
    """The second attempt has the whole time-out, and is not ended by that of the first."""
    suite.makepyfile(f"""
        import time, flaky, pytest
        @pytest.mark.timeout(1, method="{method}")
        def test_it():
            time.sleep(0.7)
            flaky.fails_first("it")
        def test_next():
            time.sleep(0.5)
        """)
    suite.runpytest_subprocess("-p", "no:anyio", "--retries", "1").assert_outcomes(passed=2)


def test_hanging_second_attempt_ends(suite: pytest.Pytester) -> None:
    """A test that hangs in both attempts is ended twice by its time-out."""
    suite.makepyfile("import pytest, time\n@pytest.mark.timeout(0.3)\ndef test_it():\n    time.sleep(60)")
    suite.runpytest_inprocess("-p", "no:anyio", "--retries", "1").assert_outcomes(failed=1)
