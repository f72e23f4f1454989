"""User data of a pool's instances: boot and drain. It contains no secret.

Two systemd units. `airbridge-worker` runs the worker's image by digest, which a signed release must name (`release_check`); it enrols
by proving its IAM role.
`airbridge-drain` watches the instance metadata for the three signs of an end (a Spot interruption, a rebalance
recommendation, the autoscaling group's Terminated target state), then stops the worker, which drains on SIGTERM:
it takes no new work and finishes what it runs. Only then is the lifecycle hook completed.

Containers do not reach the instance's metadata: its answers end after one hop, which is the host, and a firewall rule
refuses the way. `airbridge-credentials` brings the agent the instance role's credentials, in the state directory, which
no task can read, and tasks those of the pool's task role.

An instance that cannot boot (no `ca.crt` yet, no image) tries for a quarter of an hour, then reports itself unhealthy,
and the autoscaling group replaces it: EC2's own health checks see nothing of what runs on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import Template

from airbridge.infra.trust import release_check
from airbridge.infra.trust.releases import SignedRelease

#: AWS configuration of the agent and of tasks, on the host and in the container. Neither contains a secret.
AGENT_AWS_CONFIG = "/etc/airbridge/aws-agent.config"
TASK_AWS_CONFIG = "/etc/airbridge/aws-task.config"
AGENT_CREDENTIALS = "/var/lib/airbridge/aws/credentials.json"
TASK_CREDENTIALS = "/run/airbridge-task/credentials.json"

_SCRIPT = Template("""#!/bin/bash
set -euo pipefail
metadata=$${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest
read_metadata() {
  local session
  session=$$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $$metadata/api/token) || return 1
  curl -sf -H "X-aws-ec2-metadata-token: $$session" "$$metadata/meta-data/$$1"
}
retry() {
  local attempt
  for attempt in 1 2 3 4 5 6 7 8 9 10; do
    "$$@" && return 0
    echo "airbridge: attempt $$attempt of 10 failed: $$*" >&2
    sleep $${AIRBRIDGE_RETRY_SECONDS:-$$((attempt * 15))}
  done
  return 1
}
give_up() {
  echo "airbridge: this instance cannot boot; it asks to be replaced" >&2
  aws autoscaling set-instance-health --region $region --health-status Unhealthy \
    --no-should-respect-grace-period --instance-id "$$(read_metadata instance-id)" || true
}
trap give_up ERR
set -E
install -d -m 0755 /etc/airbridge /var/lib/airbridge
retry dnf install -y $packages
cat > /etc/airbridge/worker.env <<'END'
$environment
END
cat > /usr/local/bin/airbridge-drain <<'END'
#!/bin/bash
# Stops the worker, and waits for it to drain, once AWS says that this instance is to end.
set -u
metadata=$${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest
read_metadata() {
  token=$$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $$metadata/api/token) || return 1
  curl -sf -H "X-aws-ec2-metadata-token: $$token" "$$metadata/meta-data/$$1"
}
until [ "$$(read_metadata autoscaling/target-lifecycle-state)" = Terminated ] \\
  || read_metadata spot/instance-action >/dev/null \\
  || read_metadata events/recommendations/rebalance >/dev/null; do
  sleep 5
done
instance=$$(read_metadata instance-id)
( while sleep 300; do
    aws autoscaling record-lifecycle-action-heartbeat --region $region --auto-scaling-group-name $group \\
      --lifecycle-hook-name $hook --instance-id "$$instance"
  done ) 2>/dev/null &
beat=$$!
systemctl stop airbridge-worker
kill $$beat
# Not yet terminating (a notice came first): the group replaces the instance now that it is idle.
if [ "$$(read_metadata autoscaling/target-lifecycle-state)" != Terminated ]; then
  # A call that is throttled or refused is made again: nothing else ends an instance that idles after a recommendation.
  until aws autoscaling terminate-instance-in-auto-scaling-group --region $region --instance-id "$$instance" \\
      --no-should-decrement-desired-capacity \\
    || [ "$$(read_metadata autoscaling/target-lifecycle-state)" = Terminated ]; do sleep 5; done
  until [ "$$(read_metadata autoscaling/target-lifecycle-state)" = Terminated ]; do sleep 2; done
fi
aws autoscaling complete-lifecycle-action --region $region --auto-scaling-group-name $group \\
  --lifecycle-hook-name $hook --instance-id "$$instance" --lifecycle-action-result CONTINUE
END
chmod 0755 /usr/local/bin/airbridge-drain
cat > /usr/local/bin/airbridge-credentials <<'END'
#!/bin/bash
# Brings the agent the instance's credentials and tasks those of their role, in the format of credential_process.
set -euo pipefail
umask 077
bring() { # FILE MODE COMMAND...: replaced in one step, and only by a whole answer
  local file=$$1 mode=$$2
  shift 2
  "$$@" > "$$file.new"
  chown 10001:10001 "$$file.new"
  chmod "$$mode" "$$file.new"
  mv "$$file.new" "$$file"
}
session=$$(sed -n 's/^AIRBRIDGE_WORKER_NAME=//p' /etc/airbridge/worker.env)
while :; do
  bring $agent_credentials 0400 aws configure export-credentials --format process
  bring $task_credentials 0444 aws sts assume-role --region $region --role-arn $task_role_arn \
    --role-session-name "$$session" --duration-seconds 3600 --output json --query \
    '{Version: `1`, AccessKeyId: Credentials.AccessKeyId, SecretAccessKey: Credentials.SecretAccessKey, SessionToken: Credentials.SessionToken, Expiration: Credentials.Expiration}'
  [ -z "$${AIRBRIDGE_ONCE:-}" ] || exit 0
  sleep 300
done
END
chmod 0755 /usr/local/bin/airbridge-credentials
printf '[default]\nregion = $region\ncredential_process = /bin/cat $agent_credentials\n' > $agent_config
printf '[default]\nregion = $region\ncredential_process = /bin/cat $task_credentials\n' > $task_config
# The role's session is named by AWS after this instance: the gateway enrols it under no other name.
instance=$$(retry read_metadata instance-id)
echo "AIRBRIDGE_WORKER_NAME=$$instance" >> /etc/airbridge/worker.env
cat > /etc/systemd/system/airbridge-worker.service <<'END'
[Unit]
Description=AirBridge worker
After=docker.service network-online.target
Requires=docker.service
StartLimitIntervalSec=0
[Service]
Restart=always
RestartSec=5
# systemd's 90 s end the pull of a large image on a small instance.
TimeoutStartSec=900
TimeoutStopSec=$drain_seconds
ExecStartPre=/bin/sh -c 'until [ -s $agent_credentials ] && [ -s $task_credentials ]; do sleep 1; done'
# -C: the rule stands already after a restart of this unit.
ExecStartPre=/bin/sh -c 'iptables -w -C DOCKER-USER -d 169.254.169.254 -j REJECT || iptables -w -I DOCKER-USER -d 169.254.169.254 -j REJECT'
ExecStartPre=/bin/sh -c 'aws ecr get-login-password --region $region | docker login -u AWS --password-stdin $registry'
$verify_image
ExecStartPre=/usr/bin/docker pull $image
ExecStart=/usr/bin/docker run --rm --name airbridge-worker$gpus --read-only --tmpfs /tmp \\
  --cap-drop ALL --security-opt no-new-privileges --env-file /etc/airbridge/worker.env \\
  --volume /etc/airbridge:/etc/airbridge:ro --volume /run/airbridge-task:/run/airbridge-task:ro \\
  --log-driver awslogs --log-opt awslogs-region=$region --log-opt awslogs-group=$log_group \\
  --volume /var/lib/airbridge:/var/lib/airbridge --stop-timeout $drain_seconds $image airbridge-worker run
ExecStop=/usr/bin/docker stop --time $drain_seconds airbridge-worker
[Install]
WantedBy=multi-user.target
END
cat > /etc/systemd/system/airbridge-credentials.service <<'END'
[Unit]
Description=Credentials of the AirBridge worker and of its tasks
StartLimitIntervalSec=0
[Service]
Restart=always
RestartSec=5
RuntimeDirectory=airbridge-task
RuntimeDirectoryMode=0755
# The container has it mounted: it must outlive a restart of this unit.
RuntimeDirectoryPreserve=yes
ExecStart=/usr/local/bin/airbridge-credentials
[Install]
WantedBy=multi-user.target
END
cat > /etc/systemd/system/airbridge-drain.service <<'END'
[Unit]
Description=Drains the AirBridge worker before this instance ends
[Service]
Restart=on-failure
ExecStart=/usr/local/bin/airbridge-drain
[Install]
WantedBy=multi-user.target
END
retry aws s3 cp --region $region s3://$bundle_bucket/trust/ca.crt /etc/airbridge/ca.crt
$verify_ca
$install_release
install -d -m 0700 /var/lib/airbridge/aws
chown -R 10001:10001 /var/lib/airbridge
systemctl daemon-reload
systemctl enable airbridge-worker airbridge-drain airbridge-credentials
systemctl start airbridge-drain airbridge-credentials
retry systemctl start airbridge-worker
""")


@dataclass(frozen=True)
class WorkerImage:
    """Properties of an instance: an image by digest and its settings, none of them secret."""

    image: str
    registry: str
    region: str
    group: str
    hook: str
    log_group: str
    bundle_bucket: str
    drain_seconds: int
    settings: Mapping[str, str]
    task_role_arn: str
    gpu: bool = False
    ca_sha256: str | None = None
    release: SignedRelease | None = None

    def script(self) -> str:
        """The boot script."""
        environment = "\n".join(f"{name}={value}" for name, value in sorted(self.settings.items()))
        return _SCRIPT.substitute(
            environment=environment,
            image=self.image,
            registry=self.registry,
            region=self.region,
            group=self.group,
            hook=self.hook,
            log_group=self.log_group,
            bundle_bucket=self.bundle_bucket,
            drain_seconds=self.drain_seconds,
            gpus=" --gpus all" if self.gpu else "",
            verify_ca=_verification(self.ca_sha256),
            # openssl verifies the release; the machine image need not have its command.
            packages="awscli openssl" if self.release else "awscli",
            install_release=release_check.install(self.release),
            verify_image=release_check.start_condition(self.release, self.image),
            task_role_arn=self.task_role_arn,
            agent_config=AGENT_AWS_CONFIG,
            task_config=TASK_AWS_CONFIG,
            agent_credentials=AGENT_CREDENTIALS,
            task_credentials=TASK_CREDENTIALS,
        )


def _verification(ca_sha256: str | None) -> str:
    if ca_sha256 is None:
        return "# ca_sha256 of the environment would be verified here."
    return f"echo '{ca_sha256}  /etc/airbridge/ca.crt' | sha256sum --check --quiet"
