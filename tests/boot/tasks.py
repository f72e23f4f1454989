"""ECS's part: tasks, run from the task definitions that stand in the emulator.

The steps are Fargate's: with the execution role, the image is looked up and every secret resolved; then each container starts after those
that it depends on, with a read-only root, volumes that have the owner of the image's VOLUME or belong to root, and the task role's credentials.
Not modelled: the memory limit between containers, the processor architecture, and the init process (the images bring one).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.boot.account import Account, Session
from tests.boot.images import Engine
from tests.boot.metadata import Directory
from tests.boot.network import Network
from tests.boot.wires import Namespace

_WAIT_SECONDS = 900.0
# Where programs of the images look for trusted CAs. The network's is among the mounted ones: the emulator has none of Amazon's.
_CA_FILES = ("certifi/cacert.pem", "botocore/cacert.pem")
_SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Definition:
    """A task definition as ECS describes it."""

    document: dict[str, Any]

    @property
    def family(self) -> str:
        """Return its name."""
        return str(self.document["family"])

    def container(self, name: str) -> dict[str, Any]:
        """Return a container of it."""
        return next(each for each in self.document["containerDefinitions"] if each["name"] == name)

    @property
    def ordered(self) -> list[dict[str, Any]]:
        """Return the containers, each after those that it depends on."""
        left, done = list(self.document["containerDefinitions"]), []
        while left:
            known = {each["name"] for each in done}
            ready = [
                each for each in left if known >= {one["containerName"] for one in each.get("dependsOn", ())}
            ]
            if not ready:
                raise RuntimeError(f"{self.family}: its containers wait for each other")
            done += ready
            left = [each for each in left if each not in ready]
        return done


@dataclass
class Ecs:
    """What tasks need of this machine."""

    account: Account
    network: Network
    engine: Engine
    directory: Directory
    folder: Path
    #: Images of the regions' workers, as their instances name them.
    worker_images: tuple[str, ...] = ()
    #: This machine's AWS command line.
    aws: str = ""
    _packages: dict[str, str] = field(default_factory=dict)

    def definition(self, name: str) -> Definition:
        """Return a task definition, the newest of a family or the one of an ARN."""
        answer = self.account.client("ecs").describe_task_definition(taskDefinition=name)
        return Definition(answer["taskDefinition"])

    def services(self, cluster: str) -> dict[str, dict[str, Any]]:
        """Return the cluster's services by name."""
        ecs = self.account.client("ecs")
        arns = ecs.list_services(cluster=cluster, maxResults=100)["serviceArns"]
        described = ecs.describe_services(cluster=cluster, services=arns)["services"]
        return {str(each["serviceName"]): each for each in described}

    @contextmanager
    def task(self, definition: Definition, number: int = 1) -> Iterator[Task]:
        """A task whose essential containers were started, until the block ends."""
        name = f"{definition.family}-{number}"
        with ExitStack() as stack:
            space, address = stack.enter_context(self.network.host(name))
            task = Task(self, definition, name, space, address)
            stack.callback(task.remove)
            task.start()
            yield task

    def session(self, role_arn: str, task: str) -> Session:
        """Return a session of a role that trusts ECS."""
        return self.account.session(role_arn, task[-60:])

    def packages(self, image: str) -> str:
        """Return where an image has its Python packages."""
        if image not in self._packages:
            words = ("run", "--rm", "--network", "none", "--no-healthcheck", "--entrypoint", "python", image)
            program = "import certifi, pathlib; print(pathlib.Path(certifi.__file__).parents[1])"
            self._packages[image] = self.engine.run(*words, "-c", program)
        return self._packages[image]

    def trust(self, image: str) -> list[str]:
        """Return the mounts by which an image trusts the network's CA."""
        root = self.packages(image)
        targets = [f"{root}/{file}" for file in _CA_FILES]
        volumes = [f"{self.network.trusted}:{target}:ro" for target in (*targets, _SYSTEM_CA)]
        return [word for volume in volumes for word in ("--volume", volume)]


@dataclass
class Task:
    """A running task."""

    ecs: Ecs
    definition: Definition
    name: str
    space: Namespace
    address: str
    containers: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    @property
    def _tag(self) -> str:
        return self.ecs.network.tag

    @property
    def tag(self) -> str:
        """Return how the names of its containers begin."""
        return f"{self._tag}-{self.name}"

    def start(self) -> None:
        """Start the containers in their order."""
        starter = self.ecs.session(self.definition.document["executionRoleArn"], self.name)
        images = {each["image"] for each in self.definition.document["containerDefinitions"]}
        for image in images:
            _look_up(starter, image)
            self.ecs.engine.run("pull", "--quiet", image)
        for container in self.definition.ordered:
            for needed in container.get("dependsOn", ()):
                self._await(needed["containerName"], needed["condition"])
            self._start(container, self._environment(starter, container))

    def run_to_end(self) -> int:
        """Wait until the task's essential containers stopped; return the first's exit code."""
        essential = [each["name"] for each in self.definition.ordered if each.get("essential", True)]
        return int(self.ecs.engine.run("wait", self._container(essential[0])))

    def execute(self, *words: str, container: str | None = None, env: dict[str, str] | None = None) -> str:
        """Run a command in a container, as ECS Exec does; RuntimeError with its error."""
        variables = [word for key in env or {} for word in ("--env", key)]
        return self.ecs.engine.run("exec", *variables, self._container(container), *words, env=env)

    def is_healthy(self) -> bool:
        """Return whether the main container's health check passes now."""
        checks = [each for each in self.definition.ordered if each.get("healthCheck")]
        return all(self._passes(each["name"], each["healthCheck"]["command"]) for each in checks)

    def _passes(self, container: str, check: list[str]) -> bool:
        kind, *words = check
        command = words if kind == "CMD" else ["/bin/sh", "-c", *words]
        return self.ecs.engine.attempt("exec", self._container(container), *command).returncode == 0

    def is_running(self) -> bool:
        """Return whether every essential container runs."""
        essential = [each["name"] for each in self.definition.ordered if each.get("essential", True)]
        return all(self._state(name)["Running"] for name in essential)

    def log(self, lines: int = 60) -> str:
        """Return the end of what the containers wrote."""
        texts = []
        for container in self.containers:
            done = self.ecs.engine.attempt("logs", "--tail", str(lines), container)
            texts.append(f"--- {container}\n{done.stdout}{done.stderr}")
        return "\n".join(texts)

    def remove(self) -> None:
        """Stop and remove everything."""
        for container in reversed(self.containers):
            self.ecs.engine.attempt("stop", "--time", "20", container)
            self.ecs.engine.attempt("rm", "--force", container)
        for volume in self.volumes:
            self.ecs.engine.attempt("volume", "rm", "--force", volume)
        self.containers.clear()

    def _container(self, name: str | None = None) -> str:
        main = self.definition.document["containerDefinitions"][0]["name"]
        return f"{self.tag}-{name or main}"

    def _state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ecs.engine.inspect("container", self._container(name))["State"]
        return found

    def _await(self, name: str, condition: str) -> None:
        reached: dict[str, Callable[[], bool]] = {
            "START": lambda: True,
            "COMPLETE": lambda: not self._state(name)["Running"],
            "SUCCESS": lambda: not self._state(name)["Running"],
            "HEALTHY": self.is_healthy,
        }
        until(f"{self.name}: {name} {condition}", reached[condition], self.log)
        if condition == "SUCCESS" and (code := self._state(name)["ExitCode"]):
            raise RuntimeError(f"{self.name}: {name} ended with {code}\n{self.log()}")

    def _environment(self, starter: Session, container: dict[str, Any]) -> dict[str, str]:
        """Return the container's variables: as defined, and the secrets, which the execution role must be able to read."""
        found = {each["name"]: each["value"] for each in container.get("environment", ())}
        for secret in container.get("secrets", ()):
            found[secret["name"]] = resolve(starter, secret["valueFrom"])
        role = self.definition.document["taskRoleArn"]
        path = self.ecs.directory.add_task(partial(self.ecs.session, role, self.name))
        return found | {
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": path,
            "AWS_EXECUTION_ENV": "AWS_ECS_FARGATE",
        }

    def _start(self, container: dict[str, Any], environment: dict[str, str]) -> None:
        name = self._container(container["name"])
        resolver = f"{self.ecs.network.resolver}:/etc/resolv.conf:ro"
        words = [
            "--detach", "--name", name, "--network", f"ns:{self.space.path}", "--no-healthcheck", "--log-driver", "k8s-file",
            "--read-only-tmpfs=false", "--volume", resolver, *self.ecs.trust(container["image"]),
        ]  # fmt: skip
        if container.get("readonlyRootFilesystem"):
            words.append("--read-only")
        if user := container.get("user"):
            words += ["--user", user]
        for mount in container.get("mountPoints", ()):
            words += ["--volume", self._mount(container["image"], mount)]
        words += [word for key in environment for word in ("--env", key)]
        if entry := container.get("entryPoint"):
            words += ["--entrypoint", str(entry)]
        self.containers.append(name)
        self.ecs.engine.run("run", *words, container["image"], *container.get("command", ()), env=environment)

    def _mount(self, image: str, mount: dict[str, Any]) -> str:
        """Return a volume as Fargate mounts it: as the image's VOLUME is, or root's and mode 0755."""
        path, mode = mount["containerPath"], "ro" if mount.get("readOnly") else "rw"
        declared = self.ecs.engine.inspect("image", image)["Config"].get("Volumes") or {}
        if path in declared:
            volume = f"{self._tag}-{self.name}-{mount['sourceVolume']}"
            if volume not in self.volumes:
                self.volumes.append(volume)
            return f"{volume}:{path}:{mode}"
        folder = self.ecs.folder / "volumes" / self.name / mount["sourceVolume"]
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        return f"{folder}:{path}:{mode}"


def resolve(starter: Session, source: str) -> str:
    """Return the value of a secret or parameter, read as ECS reads it: `<arn>`, or `<arn>:<key>:<stage>:<version>`."""
    if ":parameter/" in source:
        ssm = starter.client("ssm", source.split(":")[3])
        name = source.partition(":parameter")[2]
        answer = ssm.get_parameters(Names=[name], WithDecryption=True)
        if not answer["Parameters"]:
            raise RuntimeError(f"ResourceInitializationError: no parameter {source}")
        return str(answer["Parameters"][0]["Value"])
    import json

    parts = source.split(":")
    arn, key = ":".join(parts[:7]), parts[7] if len(parts) > 7 else ""
    text = str(starter.client("secretsmanager", parts[3]).get_secret_value(SecretId=arn)["SecretString"])
    return str(json.loads(text)[key]) if key else text


def _look_up(starter: Session, image: str) -> None:
    """Ask ECR for the image under a role, as a pull does."""
    host, _, rest = image.partition("/")
    repository, _, digest = rest.partition("@")
    ecr = starter.client("ecr", host.split(".")[3])
    ecr.get_authorization_token()
    answer = ecr.batch_get_image(repositoryName=repository, imageIds=[{"imageDigest": digest}])
    if not answer["images"]:
        raise RuntimeError(f"CannotPullContainerError: {image}: {answer['failures']}")


def until(
    what: str, reached: Callable[[], bool], log: Callable[[], str], seconds: float = _WAIT_SECONDS
) -> None:
    """Wait for a condition; RuntimeError with a log after too long."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {seconds:.0f} s\n{log()}")
        time.sleep(0.5)
