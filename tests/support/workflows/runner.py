"""Runs a workflow's jobs one after another, each on a machine of its own, from the YAML that GitHub reads."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from tests.support.workflows.expressions import Context
from tests.support.workflows.hub import TOKEN, Hub, Machine, StepFailed

_SHELL: Final = ("bash", "-e")


@dataclass(frozen=True)
class Step:
    """A step that was run or left out."""

    name: str
    outcome: str
    output: str = ""


@dataclass
class Job:
    """A job's result, with the steps of a called workflow's jobs among its own."""

    name: str
    result: str
    steps: list[Step] = field(default_factory=list)

    def outcomes(self) -> dict[str, str]:
        """Return the outcome of each step that is a command, by its name."""
        return {step.name: step.outcome for step in self.steps}

    def output(self, name: str) -> str:
        """Return what a step printed."""
        return next(step.output for step in self.steps if step.name == name)


class WorkflowRunner:
    """Runs workflows of a checkout's ``.github/workflows``."""

    def __init__(self, hub: Hub, workflows: Path) -> None:
        self._hub = hub
        self._workflows = workflows
        self._started = ""

    def run(
        self, workflow: str, inputs: Mapping[str, Any], *, only: str | None = None, called: bool = False
    ) -> dict[str, Job]:
        """Run a workflow's jobs, or one of them; return their results by name. `called` as a job of another workflow."""
        # A called workflow's token names the workflow that was started.
        if not (called and self._started):
            self._started, self._hub.commit = workflow, self._hub.revision
        text = (self._workflows / workflow).read_text()
        # YAML 1.1 reads the key `on` as true.
        document: dict[Any, Any] = yaml.safe_load(text)
        trigger = document[True]["workflow_call" if called else "workflow_dispatch"] if inputs else {}
        given = _defaults(trigger or {}) | dict(inputs)
        done: dict[str, Job] = {}
        for name, job in document["jobs"].items():
            if only in {None, name}:
                done[name] = self._job(name, job, given, document.get("permissions") or {}, done)
        return done

    def _job(
        self,
        name: str,
        job: Mapping[str, Any],
        inputs: Mapping[str, Any],
        permissions: Mapping[str, str],
        done: Mapping[str, Job],
    ) -> Job:
        wanted = job.get("needs", [])
        needs = {
            each: done[each] for each in ([wanted] if isinstance(wanted, str) else wanted) if each in done
        }
        values = {
            "github": self._github(),
            "inputs": inputs,
            "needs": {each: {"result": before.result} for each, before in needs.items()},
        }
        failed = any(before.result in {"failure", "skipped"} for before in needs.values())
        if not Context(values, failed).holds(job.get("if")):
            return Job(name, "skipped")
        if "uses" in job:
            return self._called(name, job, values)
        combined = Job(name, "success")
        for matrix in _matrix(job):
            one = self._on_a_machine(
                name, job, {**values, "matrix": matrix}, job.get("permissions", permissions)
            )
            combined.steps += one.steps
            if one.result == "failure":
                combined.result = "failure"
        return combined

    def _called(self, name: str, job: Mapping[str, Any], values: Mapping[str, Any]) -> Job:
        context = Context(values)
        inputs = {
            key: context.fill(value) if isinstance(value, str) else value
            for key, value in job.get("with", {}).items()
        }
        jobs = self.run(Path(job["uses"]).name, inputs, called=True)
        result = "failure" if any(each.result == "failure" for each in jobs.values()) else "success"
        return Job(name, result, [step for each in jobs.values() for step in each.steps])

    def _on_a_machine(
        self, name: str, job: Mapping[str, Any], values: Mapping[str, Any], permissions: Mapping[str, str]
    ) -> Job:
        named = job.get("environment", "")
        environment = Context(values).fill(named["name"] if isinstance(named, Mapping) else named)
        secrets = self._hub.of(self._hub.secrets, environment)
        values = {**values, "vars": self._hub.of(self._hub.variables, environment), "secrets": secrets}
        labels = Context(values).fill(job.get("runs-on", ""))
        machine = Machine(
            self._hub, self._hub.new_machine(name), permissions, self._started, environment, labels
        )
        result = Job(name, "success")
        for step in job["steps"]:
            context = Context(values, failed=result.result == "failure")
            title = str(step.get("name") or step.get("run") or step["uses"].partition("@")[0]).strip()
            if not context.holds(step.get("if")):
                result.steps.append(Step(title, "skipped"))
                continue
            outcome, output = self._step(step, context, machine, 60.0 * job.get("timeout-minutes", 360))
            result.steps.append(Step(title, outcome, _masked(output, [*secrets.values(), TOKEN])))
            if outcome == "failure":
                result.result = "failure"
        return result

    def _step(
        self, step: Mapping[str, Any], context: Context, machine: Machine, seconds: float
    ) -> tuple[str, str]:
        variables = {key: context.fill(value) for key, value in step.get("env", {}).items()}
        try:
            if "uses" in step:
                machine.act(
                    step["uses"],
                    {key: context.fill(_plain(value)) for key, value in step.get("with", {}).items()},
                )
                return "success", ""
            return _shell(context.fill(step["run"]), machine, variables, seconds)
        except StepFailed as error:
            return "failure", str(error)

    def _github(self) -> dict[str, Any]:
        return {
            "ref": self._hub.ref,
            "sha": self._hub.commit,
            "token": TOKEN,
            "actor": "mona",
            "event": self._hub.event,
        }


def _defaults(trigger: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one.get("default") for name, one in (trigger.get("inputs") or {}).items()}


def _matrix(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    axes = job.get("strategy", {}).get("matrix", {})
    for combination in itertools.product(*axes.values()):
        yield dict(zip(axes, combination, strict=True))


def _plain(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _masked(text: str, secrets: list[str]) -> str:
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def _shell(script: str, machine: Machine, variables: Mapping[str, str], seconds: float) -> tuple[str, str]:
    """Run a script as the hosted runner does: ``bash -e``, without pipefail."""
    file = machine.temp / "step.sh"
    file.write_text(script)
    process = subprocess.Popen(
        [*_SHELL, str(file)],
        cwd=machine.workspace,
        env={**machine.environment, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return "failure", f"{output}\nended after {seconds:.0f} s"
    finally:
        file.unlink()
    return ("failure" if process.returncode else "success"), output
