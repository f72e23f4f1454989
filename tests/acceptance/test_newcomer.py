"""A newcomer's path: the commands of "Getting started" and of the README as they are written, on one platform."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.acceptance import newcomer
from tests.acceptance.newcomer import Command, Saved, Terminal
from tests.support.platform import wait_for
from tests.unit.docs.pages import ROOT

from airbridge.control_plane.local.services.airflow_rest import AirflowRest

PAGE = (ROOT / "docs" / "tutorials" / "getting-started.md").read_text()
README = (ROOT / "README.md").read_text()
USED = "is in use by process"

# Commands of the pages' blocks in their order, by their first line, with what their output must have.
TYPED = {
    "airbridge --version": r"Apache Airflow 3\.0\.4",
    "export AWS_ENDPOINT_URL=$(airbridge status --json | python -c "
    """'import json, sys; print(json.load(sys.stdin)["platform"]["aws_url"])')""": "",
    "export AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x": "",
    "samples=control_plane/src/airbridge/control_plane/samples": "",
    "python - <<END": "",
    "cp $samples/dags/near_the_data.py .airbridge/dags/": "",
    "echo 'humanize==4.12.3' > .airbridge/dags/requirements.txt": "",
    "airbridge trace mine latest tries_twice": r"(?s)to be retried.*success",
    "export AIRFLOW_HOME=$PWD/.airbridge/airflow AIRFLOW_CONFIG=$PWD/.airbridge/control-plane/airflow.cfg": "",
    "airflow dags list-runs mine": r"mine .*success",
}
# Commands in the text, which are typed after them; the last one ends the platform.
INLINE = {
    "airbridge status": r"(?s)gateway.*eu-west-1",
    "airbridge worker list": r"(?s)eu-west-1-default-1.*us-east-1-default-1",
    "airbridge worker drain eu-west-1-default-1": r"eu-west-1-default-1",
    "airbridge worker resume": r"eu-west-1-default-1",
    "airbridge token create --region eu-west-1": r"abj_",
    "airbridge down": r"stopped",
}
WRITTEN_SHORT = {"airbridge worker resume": "airbridge worker resume eu-west-1-default-1"}
# Commands that are not typed, and why.
REFUSED = {
    "airbridge up --region us-east-1:default,gpu --region eu-west-1 --region ap-southeast-2": "a second platform "
    "in the directory: its options are read, and it is refused because the directory is in use"
}
LEFT_OUT = {
    "make demo": "a platform of its own: test_demo.py runs `airbridge demo`",
    "make test": "this test would run itself",
    "make test SLOW=1": "this test would run itself",
    "make up": "has a terminal of its own, in which it runs from the beginning to the end",
    "make shell": "is the terminal into which the others are typed",
    "airbridge up --detach": "a second platform in the directory; launched so by every other test's platform",
    "airbridge up --airflow core.executor=airbridge.executor.EdgeExecutor,LocalExecutor --airflow "
    "airbridge.lost_after=60": "a second platform in the directory; tests.support.platform starts such ones",
    "airbridge trace DAG RUN TASK": "has names to be filled in; typed with names elsewhere on the page",
    "airbridge trace": "names the command",
    "airbridge up": "names the command",
}
README_LEFT_OUT = ("with DAG(",)


def test_every_command_is_known() -> None:
    """Every block and inline command of the pages is one that the newcomer types, or is left out for a reason that is given."""
    typed = [each.first_line for each in newcomer.elements(PAGE) if isinstance(each, Command)]
    assert [each for each in typed if each not in REFUSED | LEFT_OUT] == list(TYPED)
    assert [each for each in newcomer.inline_commands(PAGE) if each not in INLINE | LEFT_OUT] == []
    assert [each for each in INLINE if each not in newcomer.inline_commands(PAGE)] == []
    blocks = [each for each in newcomer.elements(README) if isinstance(each, Command)]
    unknown = [each.text for each in blocks if each.first_line not in TYPED | LEFT_OUT]
    assert [text for text in unknown if not any(word in text for word in README_LEFT_OUT)] == []
    assert [each for each in newcomer.inline_commands(README) if each not in INLINE | LEFT_OUT] == []


@pytest.mark.parametrize("language", ["console", "bash", "python", "sql"])
def test_unknown_block_is_noticed(language: str) -> None:
    """A block that is added to a page is a command that nobody knows."""
    *_, last = newcomer.elements(f"{PAGE}\n```{language}\n$ airbridge env build dags\n```\n")
    assert isinstance(last, Command)
    assert last.first_line not in TYPED | REFUSED | LEFT_OUT


@dataclass
class Newcomer:
    """A user with a fresh checkout, a terminal in which `make up` runs, and another with `make shell`."""

    directory: Path
    platform: Terminal
    shell: Terminal
    airflow: AirflowRest
    url: str

    def type(self, command: str, output: str) -> None:
        """Type a command that must succeed with this output."""
        done = self.shell.type(WRITTEN_SHORT.get(command, command))
        assert done.status == 0, done.output
        assert re.search(output, done.output), done.output

    def import_errors(self) -> dict[str, str]:
        """Return the import errors that the UI shows, by the name of the file."""
        found = self.airflow._json("GET", "/api/v2/importErrors")["import_errors"]
        return {each["filename"]: each["stack_trace"] for each in found}

    def start(self, dag_id: str) -> str:
        """Unpause and trigger a DAG, as in the UI, when it is there."""
        self.airflow.wait_for_dag(dag_id)
        self.airflow.unpause(dag_id)
        return self.airflow.trigger(dag_id)

    def finish(self, dag_id: str, run_id: str) -> dict[str, int]:
        """Wait until a run has succeeded; return each task's tries."""
        assert self.airflow.wait(dag_id, run_id, 120) == "success"
        return {each["task_id"]: each["try_number"] for each in self.airflow.task_instances(dag_id, run_id)}

    # --- the steps that the page describes in words --------------------------------------------------

    def after_saving(self, saved: Saved) -> None:
        """The DAG lacks its package: the UI's import error names the user's file, its line and the remedy."""
        wait_for(lambda: bool(self.import_errors()), "the import error", 60)
        [(name, text)] = self.import_errors().items()
        assert name == Path(saved.path).name
        assert f'File "{Path(saved.path).name}", line 3' in text, text
        assert "No module named 'humanize'; add the package" in text
        assert ".airbridge/airflow" not in text, text

    def after_adding_package(self) -> str:
        """The import error goes, and the DAG runs: with its package, in two regions, with one retry."""
        run_id = self.start("mine")
        assert self.finish("mine", run_id) == {"count": 1, "report": 1, "tries_twice": 2}
        assert self.airflow.xcom("mine", run_id, "count") == "1,234,567"
        wait_for(lambda: not self.import_errors(), "the import error to go", 30)
        return run_id

    def see_dashboard(self, run_id: str) -> None:
        """Every page of the dashboard answers; Work and Timeline have the run."""
        with httpx.Client(base_url=f"{self.url}/airbridge", trust_env=False, timeout=30) as browser:
            token = httpx.get(f"{self.url}/auth/token", trust_env=False).json()["access_token"]
            signed_in = {"Authorization": f"Bearer {token}", "Origin": self.url}
            browser.post("/session", headers=signed_in).raise_for_status()
            # The class of the exception comes with a heartbeat of the worker.
            wait_for(lambda: "ConnectionError" in browser.get("/work").text, "the exception on Work", 30)
            pages = {
                path: browser.get(path).raise_for_status().text
                for path in ("/", "/workers", "/work", "/audit")
            }
            task = {"dag": "mine", "run": run_id, "task": "tries_twice"}
            pages["/timeline"] = browser.get("/timeline", params=task).raise_for_status().text
        assert run_id in pages["/work"]
        assert (
            len(re.findall(r"<tr id=\"item-[^>]*>\s*<th[^>]*>(?:<[^>]*>)*tries_twice", pages["/work"])) == 2
        )
        assert run_id in pages["/timeline"]
        assert "eu-west-1-default-1" in pages["/workers"]


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Newcomer]:
    """A newcomer who has typed `make up` and `make shell`."""
    with ExitStack() as stack:
        directory = stack.enter_context(newcomer.checkout())
        platform = Terminal("make up", directory, newcomer.packages(tmp_path))
        stack.callback(platform.close)
        stack.callback(platform.interrupt)
        url = platform.wait_for(r"the dashboard is at (http://\S+)/airbridge/", 180)[1]
        shell = Terminal("make shell", directory, {})
        stack.callback(shell.close)
        yield Newcomer(directory, platform, shell, stack.enter_context(AirflowRest(url)), url)


def test_newcomers_path(user: Newcomer) -> None:
    """Each command of the page works as written, and the page's own DAG, error, package, retry and dashboard are as it says."""
    demo_run = run_id = ""
    for each in newcomer.elements(PAGE):
        if isinstance(each, Saved):
            (user.directory / each.path).write_text(each.text)
            user.after_saving(each)
        elif each.first_line in REFUSED:
            refused = user.shell.type(each.text)
            assert (refused.status, USED in refused.output) == (3, True), refused.output
        elif each.first_line in TYPED:
            user.type(each.text, TYPED[each.first_line])
            if each.first_line.startswith("cp "):
                demo_run = user.start("near_the_data")
            if each.first_line.startswith("echo 'humanize"):
                run_id = user.after_adding_package()
    assert set(user.finish("near_the_data", demo_run).values()) == {1}
    user.see_dashboard(run_id)
    for command, output in INLINE.items():
        user.type(command, output)
    assert user.platform.close() == 0
