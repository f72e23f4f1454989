"""The whole platform, booted from what stands in an emulator."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.boot import deployment as deployments
from tests.boot import sign_in
from tests.boot.account import Account
from tests.boot.database import database
from tests.boot.deployment import ISSUER, UI, Deployment
from tests.boot.images import Build, Registry, registry
from tests.boot.instances import Instance, instance
from tests.boot.metadata import metadata
from tests.boot.network import Network, network
from tests.boot.tasks import Ecs, Task, until
from tests.boot.tutorial import Terminal
from tests.boot.wires import Wire, forwarding, loopback

NETWORK_BALANCER, UI_BALANCER = "10.77.0.2", "10.77.0.5"
#: In the order of the tutorial; the gateway first, because everything else can wait for it.
SERVICES = ("gateway", "api-server", "scheduler", "dag-processor", "triggerer")
#: Where the person of the tutorial reaches the internal balancer, as through a VPN.
OPERATOR = "127.0.77.2"


@dataclass
class Platform:
    """What booted so far, and the means to boot more of it."""

    deployment: Deployment
    build: Build
    account: Account
    ecs: Ecs
    provider: sign_in.Provider
    registry: Registry
    terminal: Terminal
    stack: ExitStack
    tasks: dict[str, Task] = field(default_factory=dict)
    #: The newest instance of each region.
    instances: dict[str, Instance] = field(default_factory=dict)
    _ends: dict[str, ExitStack] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """Return how the names of everything begin."""
        return str(self.deployment.plane["cluster_name"])

    @property
    def network(self) -> Network:
        """Return the network."""
        return self.ecs.network

    def migrate(self) -> str:
        """Run the migration task to its end; return its log. RuntimeError if it failed."""
        with self.ecs.task(self.ecs.definition(f"{self.prefix}-migrate")) as task:
            code = task.run_to_end()
            log = task.log()
        if code:
            raise RuntimeError(f"the migration task ended with {code}\n{log}")
        return log

    def start(self, service: str) -> Task:
        """Start a service's task from the definition that the service names, and wait until it is healthy."""
        described = self.ecs.services(self.prefix)[f"{self.prefix}-{service}"]
        began = time.monotonic()
        task = self.stack.enter_context(self.ecs.task(self.ecs.definition(described["taskDefinition"])))
        self.tasks[service] = task
        until(f"{service} healthy", lambda: _healthy(task), task.log, 300)
        for joined in described["loadBalancers"]:
            self._balance(task, joined)
        self.terminal.note(f"{service}: healthy after {time.monotonic() - began:.0f} s")
        return task

    def _balance(self, task: Task, joined: dict[str, Any]) -> None:
        """Open the ports of the listeners that forward to a target group."""
        elb = self.account.client("elbv2")
        for balancer in elb.describe_load_balancers()["LoadBalancers"]:
            listeners = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
            for listener in listeners:
                if joined["targetGroupArn"] not in json.dumps(listener["DefaultActions"]):
                    continue
                ends_tls = listener["Protocol"] == "HTTPS"
                address = UI_BALANCER if ends_tls else NETWORK_BALANCER
                self.network.names[balancer["DNSName"].lower()] = address
                tls = self.network.server_context(UI) if ends_tls else None
                self.network.balance(
                    address, listener["Port"], [(task.address, joined["containerPort"])], tls
                )

    def operator(self) -> Task:
        """Start the operators' task, in which a session can be opened."""
        if "operator" not in self.tasks:
            definition = self.ecs.definition(f"{self.prefix}-operator")
            self.tasks["operator"] = self.stack.enter_context(self.ecs.task(definition))
        return self.tasks["operator"]

    def follow(self, section: int) -> None:
        """Follow a section of the tutorial that needs what booted. RuntimeError if a command fails or does not print what the page has."""
        plugin = self.deployment.folder / "bin" / "session-manager-plugin"
        if not plugin.exists():
            plugin.parent.mkdir()
            plugin.symlink_to(Path(__file__).parent / "root" / "session_manager_plugin.py")
            self.terminal.environ["PATH"] = f"{plugin.parent}:{self.terminal.environ['PATH']}"
            self.terminal.hosts[self.deployment.plane["gateway_host"]] = OPERATOR
            self.network.expose((NETWORK_BALANCER, 8444), socket.create_server((OPERATOR, 8444)))
        self.terminal.environ["AIRBRIDGE_BOOT_TASK"] = self.operator().tag
        if wrong := self.terminal.follow({section}):
            raise RuntimeError("\n".join(wrong))

    def first_token(self) -> str:
        """Make the first token in a session of the operators' task, as the tutorial does."""
        self.follow(6)
        return (self.deployment.infra / "token").read_text().strip()

    def command_line(self, token: str, *words: str, folder: Path | None = None) -> str:
        """Run `airbridge` as an operator whose machine reaches the gateway's operator port; `folder` is mounted as /work."""
        image = self.tasks["gateway"].definition.ordered[-1]["image"]
        given = self.ecs.folder / "operator"
        given.mkdir(exist_ok=True)
        (given / "token").write_text(token)
        shutil.copyfile(self.deployment.keys / "ca.crt", given / "ca.crt")
        mounts = [f"{given}:/etc/operator:ro", f"{self.network.resolver}:/etc/resolv.conf:ro"]
        if folder:
            mounts.append(f"{folder}:/work:ro")
        host = self.deployment.plane["gateway_host"]
        environ = {
            "AIRBRIDGE_URL": f"https://{host}:8444",
            "AIRBRIDGE_TOKEN_FILE": "/etc/operator/token",
            "AIRBRIDGE_CA_FILE": "/etc/operator/ca.crt",
        }
        options = [word for mount in mounts for word in ("--volume", mount)]
        options += [word for pair in environ.items() for word in ("--env", "=".join(pair))]
        at = ["--network", f"ns:{self.operator().space.path}", "--no-healthcheck", "--user", "0"]
        return self.ecs.engine.run("run", "--rm", *at, *options, image, "airbridge", *words)

    def person(self) -> sign_in.Person:
        """Sign in to the UI, and return the person with Airflow's REST API."""
        trusted = ssl.create_default_context()
        self.network.authority.configure_trust(trusted)
        listener = loopback()
        tls = self.network.server_context(UI, "127.0.0.1")
        target = (self.tasks["api-server"].address, 8080)
        self.stack.enter_context(forwarding(Wire(listener, lambda: self.network.space.connect(*target), tls)))
        token = sign_in.sign_in(f"https://127.0.0.1:{listener.getsockname()[1]}", trusted, self.provider)
        return sign_in.Person(f"http://127.0.0.1:{self.network.expose(target)}", token)

    def push(self, token: str, folder: Path) -> str:
        """Push a folder of DAG files."""
        return self.command_line(token, "dags", "push", "/work", "--json", folder=folder)

    def scale(self, region: str, pool: str, size: int) -> list[str]:
        """Set the size of a pool's group; return the ids of the instances that it then has."""
        group = self.deployment.regions[region]["groups"][pool]
        scaling = self.account.client("autoscaling", region)
        scaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=size)
        found = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"][0]
        return [each["InstanceId"] for each in found["Instances"]]

    def launch(self, region: str, pool: str = "default") -> Instance:
        """Scale a pool to one, and boot the instance that its group then has."""
        (instance_id,) = self.scale(region, pool, 1)
        return self.boot(region, pool, instance_id)

    def boot(self, region: str, pool: str, instance_id: str) -> Instance:
        """Boot an instance that a group has."""
        group = self.deployment.regions[region]["groups"][pool]
        own = ExitStack()
        self.stack.push(own)
        booted = own.enter_context(instance(self.ecs, region, group, instance_id))
        self.instances[region], self._ends[instance_id] = booted, own
        return booted

    def release(self, build: Build, region: str) -> None:
        """Push a build to a region's repositories, and deploy it to the region's pools: the control plane admits it already."""
        self.registry.push(build, "edge-worker", self.prefix)
        self.registry.replicate(self.account, self.deployment.regions)
        deployments.put_on(self.deployment, build, self.build)
        deployments.apply(self.deployment, f"edge-{region}")

    def power_off(self, booted: Instance) -> None:
        """Cut the power of an instance."""
        self._ends.pop(booted.identity.instance).close()

    def workers(self, token: str) -> dict[str, dict[str, Any]]:
        """Return what `airbridge worker list` shows, by worker."""
        listed = json.loads(self.command_line(token, "worker", "list", "--json"))
        entries = listed["workers"] if isinstance(listed, dict) else listed
        return {each["id"]: each for each in entries}


def _healthy(task: Task) -> bool:
    if not task.is_running():
        raise RuntimeError(f"{task.name}: its essential container has ended\n{task.log()}")
    return task.is_healthy()


@contextmanager
def platform(
    deployment: Deployment, build: Build, pushed: Registry, terminal: Terminal
) -> Iterator[Platform]:
    """What a deployment on an emulator needs to boot, with IAM enforced; nothing of it has started yet."""
    plane = deployment.plane
    account, folder = deployment.account, deployment.folder
    number = account.client("sts").get_caller_identity()["Account"]
    with ExitStack() as stack:
        net = stack.enter_context(network(folder, deployment.port))
        directory = stack.enter_context(metadata(net))
        regions = sorted({plane["home_region"], *deployment.regions})
        prefix = plane["cluster_name"]
        engine = pushed.engine(number, regions)
        terminal.note("starting the database")
        stack.enter_context(
            database(account, net, folder, plane["database_secret_arn"], plane["database_address"])
        )
        provider = stack.enter_context(sign_in.provider(net, ISSUER, deployment.client_secret))
        _resolve(account, net, deployment)
        worker = f"{prefix}/edge-worker@{build.digest('edge-worker')}"
        images = tuple(f"{number}.dkr.ecr.{region}.amazonaws.com/{worker}" for region in deployment.regions)
        for image in images:
            engine.run("pull", "--quiet", image)
        aws = shutil.which("aws")
        if aws is None:
            raise RuntimeError("the AWS command line is missing: pip install awscli")
        ecs = Ecs(account, net, engine, directory, folder, images, aws)
        account.enforce()
        yield Platform(deployment, build, account, ecs, provider, pushed, terminal, stack)


@contextmanager
def deployed(
    folder: Path, build: Build, note: Callable[[str], None], earlier: Build | None = None
) -> Iterator[Platform]:
    """What the tutorial deployed on an emulator, its first five sections followed. RuntimeError with what a command did not print."""
    made = deployments.prepare(folder, build, earlier)
    with deployments.emulator(made), registry(folder, deployments.registry_host(made)) as pushed:
        terminal = deployments.terminal(made, pushed, note)
        if wrong := terminal.follow(range(6)):
            raise RuntimeError("\n".join(wrong))
        with platform(made, build, pushed, terminal) as booting:
            yield booting


def _resolve(account: Account, net: Network, deployment: Deployment) -> None:
    """Resolve the gateway's name where a region's private zone has it, and the UI's."""
    host = deployment.plane["gateway_host"]
    zones = account.client("route53").list_hosted_zones()["HostedZones"]
    if sum(zone["Name"].rstrip(".") == host for zone in zones) != len(deployment.regions):
        raise RuntimeError(f"not every region has a private zone {host}")
    net.add_address(NETWORK_BALANCER, host)
    net.add_address(UI_BALANCER, UI)
