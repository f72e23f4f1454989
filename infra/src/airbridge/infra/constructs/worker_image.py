"""What an instance of a pool does when it boots, and when it is told to go. No secret is in it.

Two systemd units. `airbridge-worker` runs the worker's image by digest; it enrols by proving its IAM role.
`airbridge-drain` watches the instance metadata for the three signs of an end (a Spot interruption, a rebalance
recommendation, the autoscaling group's Terminated target state), then stops the worker, which drains on SIGTERM:
it takes no new work and finishes what it runs. Only then is the lifecycle hook completed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import Template

_SCRIPT = Template("""#!/bin/bash
set -euo pipefail
install -d -m 0755 /etc/airbridge /var/lib/airbridge
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
  aws autoscaling terminate-instance-in-auto-scaling-group --region $region --instance-id "$$instance" \\
    --no-should-decrement-desired-capacity
  until [ "$$(read_metadata autoscaling/target-lifecycle-state)" = Terminated ]; do sleep 2; done
fi
aws autoscaling complete-lifecycle-action --region $region --auto-scaling-group-name $group \\
  --lifecycle-hook-name $hook --instance-id "$$instance" --lifecycle-action-result CONTINUE
END
chmod 0755 /usr/local/bin/airbridge-drain
cat > /etc/systemd/system/airbridge-worker.service <<'END'
[Unit]
Description=AirBridge worker
After=docker.service network-online.target
Requires=docker.service
[Service]
Restart=always
RestartSec=5
TimeoutStopSec=$drain_seconds
ExecStartPre=/bin/sh -c 'aws ecr get-login-password --region $region | docker login -u AWS --password-stdin $registry'
ExecStartPre=/usr/bin/docker pull $image
ExecStart=/usr/bin/docker run --rm --name airbridge-worker --network host --read-only --tmpfs /tmp \\
  --cap-drop ALL --security-opt no-new-privileges --env-file /etc/airbridge/worker.env \\
  --volume /etc/airbridge:/etc/airbridge:ro \\
  --log-driver awslogs --log-opt awslogs-region=$region --log-opt awslogs-group=$log_group \\
  --volume /var/lib/airbridge:/var/lib/airbridge --stop-timeout $drain_seconds $image airbridge-worker run
ExecStop=/usr/bin/docker stop --time $drain_seconds airbridge-worker
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
dnf install -y awscli
aws s3 cp --region $region s3://$bundle_bucket/trust/ca.crt /etc/airbridge/ca.crt
chown 10001:10001 /var/lib/airbridge
systemctl daemon-reload
systemctl enable --now airbridge-worker airbridge-drain
""")


@dataclass(frozen=True)
class WorkerImage:
    """What runs on an instance: an image by digest and its settings, none of them secret."""

    image: str
    registry: str
    region: str
    group: str
    hook: str
    log_group: str
    bundle_bucket: str
    drain_seconds: int
    settings: Mapping[str, str]

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
        )
