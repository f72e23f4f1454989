"""Worker pool: an autoscaling group of like workers that scales from zero and drains before termination."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airbridge.infra import aws_facts
from airbridge.infra.cdk import Construct, Token, aws
from airbridge.infra.constructs.compute.worker_image import WorkerImage
from airbridge.infra.constructs.monitoring.alarm import Alarm, AlarmProps
from airbridge.infra.constructs.monitoring.log_group import log_group
from airbridge.infra.exceptions import InfraError
from airbridge.infra.scaling import BACKLOG, NAMESPACE, WORK, ScalingPlan
from airbridge.infra.trust.releases import SignedRelease

HOOK = "drain"
#: How long a terminating instance that is silent is waited for. Not the pool's drain time: AWS reads it when the group is made, and
#: the drain time may change later. A draining instance renews it every 300 s (`worker_image`).
HOOK_SECONDS = 900


@dataclass(frozen=True)
class WorkerPoolProps:
    """A pool's place, size, image and settings.

    `machine_image` is an AMI id; the image has Docker and the SSM agent. It cannot be `resolve:ssm:<parameter>`: an
    instance refresh does not roll such a template back (RollbackInstanceRefresh, Auto Scaling API reference).
    """

    name: str
    region: str
    pool: str
    role_name: str
    subnet_ids: Sequence[str]
    security_group_id: str
    machine_image: str
    instance_types: Sequence[str]
    disk_gib: int
    scaling: ScalingPlan
    on_demand_base: int
    on_demand_percent: int
    drain_seconds: int
    image: str
    registry: str
    settings: Mapping[str, str]
    bundle_bucket: str
    task_role_arn: str
    key_arn: str
    tags: Mapping[str, str]
    log_days: int = 30
    gpu: bool = False
    ca_sha256: str | None = None
    release: SignedRelease | None = None
    public_address: bool = False


class WorkerPool(Construct):
    """An autoscaling group, its launch template, its drain hook and its scaling."""

    def __init__(self, scope: Construct, id_: str, props: WorkerPoolProps) -> None:
        super().__init__(scope, id_)
        self._props = props
        self.log_group = log_group(self, "log", f"/airbridge/{props.name}", props.key_arn, props.log_days)
        self.profile = aws.iam_instance_profile.IamInstanceProfile(
            self, "profile", name=props.name, role=props.role_name
        )
        self.template = self._launch_template()
        self.group = self._autoscaling_group()
        self._scale_out()
        self._scale_in()

    def _script(self) -> str:
        props = self._props
        worker = WorkerImage(
            image=props.image,
            registry=props.registry,
            region=props.region,
            group=props.name,
            hook=HOOK,
            log_group=f"/airbridge/{props.name}",
            drain_seconds=props.drain_seconds,
            bundle_bucket=props.bundle_bucket,
            task_role_arn=props.task_role_arn,
            settings=props.settings,
            gpu=props.gpu,
            ca_sha256=props.ca_sha256,
            release=props.release,
        )
        return worker.script()

    def _launch_template(self) -> aws.launch_template.LaunchTemplate:
        props = self._props
        module = aws.launch_template
        disk = module.LaunchTemplateBlockDeviceMappingsEbs(
            volume_size=props.disk_gib, volume_type="gp3", encrypted="true", delete_on_termination="true"
        )
        return module.LaunchTemplate(
            self,
            "template",
            name=props.name,
            update_default_version=True,
            image_id=props.machine_image,
            user_data=_encoded(aws_facts.in_partition(self._script(), props.region)),
            ebs_optimized="true",
            block_device_mappings=[
                module.LaunchTemplateBlockDeviceMappings(device_name="/dev/xvda", ebs=disk)
            ],
            iam_instance_profile=module.LaunchTemplateIamInstanceProfile(arn=self.profile.arn),
            metadata_options=module.LaunchTemplateMetadataOptions(
                http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=1
            ),
            monitoring=module.LaunchTemplateMonitoring(enabled=True),
            network_interfaces=[
                module.LaunchTemplateNetworkInterfaces(
                    associate_public_ip_address="true" if props.public_address else "false",
                    delete_on_termination="true",
                    security_groups=[props.security_group_id],
                )
            ],
            tag_specifications=[
                module.LaunchTemplateTagSpecifications(
                    resource_type=kind, tags={**props.tags, "Name": props.name}
                )
                for kind in ("instance", "volume")
            ],
        )

    def _autoscaling_group(self) -> aws.autoscaling_group.AutoscalingGroup:
        props, module = self._props, aws.autoscaling_group
        return module.AutoscalingGroup(
            self,
            "group",
            name=props.name,
            min_size=props.scaling.min_instances,
            max_size=props.scaling.max_instances,
            vpc_zone_identifier=list(props.subnet_ids),
            health_check_type="EC2",
            health_check_grace_period=120,
            default_instance_warmup=props.scaling.warmup_seconds,
            capacity_rebalance=True,
            wait_for_capacity_timeout="0",
            mixed_instances_policy=self._mixed_instances(),
            # On the group, not beside it: an instance launched at once must already have the hook.
            initial_lifecycle_hook=[
                module.AutoscalingGroupInitialLifecycleHook(
                    name=HOOK,
                    lifecycle_transition="autoscaling:EC2_INSTANCE_TERMINATING",
                    heartbeat_timeout=HOOK_SECONDS,
                    default_result="CONTINUE",
                )
            ],
            instance_refresh=module.AutoscalingGroupInstanceRefresh(
                strategy="Rolling",
                preferences=module.AutoscalingGroupInstanceRefreshPreferences(
                    min_healthy_percentage=75,
                    max_healthy_percentage=125,
                    instance_warmup=str(props.scaling.warmup_seconds),
                    checkpoint_percentages=[10, 50, 100],
                    checkpoint_delay="300",
                    auto_rollback=True,
                    scale_in_protected_instances="Wait",
                ),
            ),
            tag=[
                module.AutoscalingGroupTag(key=key, value=value, propagate_at_launch=False)
                for key, value in sorted({**props.tags, "Name": props.name}.items())
            ],
            lifecycle={"ignore_changes": ["desired_capacity"]},
        )

    def _mixed_instances(self) -> aws.autoscaling_group.AutoscalingGroupMixedInstancesPolicy:
        props, module = self._props, aws.autoscaling_group
        return module.AutoscalingGroupMixedInstancesPolicy(
            instances_distribution=module.AutoscalingGroupMixedInstancesPolicyInstancesDistribution(
                on_demand_base_capacity=props.on_demand_base,
                on_demand_percentage_above_base_capacity=props.on_demand_percent,
                on_demand_allocation_strategy="prioritized",
                spot_allocation_strategy="price-capacity-optimized",
            ),
            launch_template=module.AutoscalingGroupMixedInstancesPolicyLaunchTemplate(
                launch_template_specification=module.AutoscalingGroupMixedInstancesPolicyLaunchTemplateLaunchTemplateSpecification(
                    launch_template_id=self.template.id,
                    # The version itself, not $Latest: a new digest must show as a change here, and start a refresh.
                    version=Token.as_string(self.template.latest_version),
                ),
                override=[
                    module.AutoscalingGroupMixedInstancesPolicyLaunchTemplateOverride(instance_type=name)
                    for name in props.instance_types
                ],
            ),
        )

    def _scale_out(self) -> None:
        props, module = self._props, aws.autoscaling_policy
        steps = props.scaling.steps
        ends = [step.from_backlog for step in steps[1:]] + [None]
        policy = module.AutoscalingPolicy(
            self,
            "grow",
            name=f"{props.name}-grow",
            autoscaling_group_name=self.group.name,
            policy_type="StepScaling",
            adjustment_type="ChangeInCapacity",
            metric_aggregation_type="Maximum",
            estimated_instance_warmup=props.scaling.warmup_seconds,
            step_adjustment=[
                module.AutoscalingPolicyStepAdjustment(
                    scaling_adjustment=step.add_instances,
                    metric_interval_lower_bound=str(step.from_backlog),
                    metric_interval_upper_bound=None if end is None else str(end),
                )
                for step, end in zip(steps, ends, strict=True)
            ],
        )
        self._signal(
            "backlog",
            "Work waits",
            policy.arn,
            metric=BACKLOG,
            comparison="GreaterThanThreshold",
            threshold=0,
            period=props.scaling.out_period_seconds,
            periods=1,
        )

    def _scale_in(self) -> None:
        props, module = self._props, aws.autoscaling_policy
        policy = module.AutoscalingPolicy(
            self,
            "shrink",
            name=f"{props.name}-shrink",
            autoscaling_group_name=self.group.name,
            policy_type="StepScaling",
            adjustment_type="PercentChangeInCapacity",
            min_adjustment_magnitude=1,
            metric_aggregation_type="Maximum",
            step_adjustment=[
                module.AutoscalingPolicyStepAdjustment(
                    scaling_adjustment=-props.scaling.in_percent, metric_interval_upper_bound="0"
                )
            ],
        )
        periods = props.scaling.idle_minutes
        self._signal(
            "idle",
            "Half of the slots are spare",
            policy.arn,
            metric=WORK,
            comparison="LessThanOrEqualToThreshold",
            threshold=props.scaling.spare_below,
            period=60,
            periods=periods,
        )

    def _signal(
        self,
        id_: str,
        cause: str,
        policy_arn: str,
        *,
        metric: str,
        comparison: str,
        threshold: float,
        period: int,
        periods: int,
    ) -> None:
        props = self._props
        Alarm(
            self,
            id_,
            AlarmProps(
                name=f"{props.name}-{id_}",
                description=f"{cause} in {props.region}, pool {props.pool}: the group is scaled",
                namespace=NAMESPACE,
                metric=metric,
                dimensions={"Region": props.region, "Pool": props.pool},
                comparison=comparison,
                threshold=threshold,
                period_seconds=period,
                periods=periods,
                actions=(policy_arn,),
            ),
        )


def _encoded(script: str) -> str:
    """Return the boot script as base64.

    Raises:
        InfraError: the script holds a value that only Terraform knows, which nobody would find inside of base64.
    """
    if Token.is_unresolved(script):
        line = next(line.strip() for line in script.splitlines() if Token.is_unresolved(line))
        raise InfraError(f"the boot script has a value that is known after the deployment only: {line}")
    return base64.b64encode(script.encode()).decode()
