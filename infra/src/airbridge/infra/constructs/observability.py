"""What the people on call look at: one dashboard, and the control plane's alarms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.alarm import Alarm, AlarmProps
from airbridge.infra.scaling import BACKLOG, NAMESPACE


@dataclass(frozen=True)
class ObservabilityProps:
    """What is watched, by the names and ARN suffixes that CloudWatch's dimensions use."""

    prefix: str
    region: str
    database: str
    cluster: str
    services: Sequence[str]
    ui_balancer: str
    gateway_balancer: str
    edge_targets: str
    pools: Mapping[str, Sequence[str]]
    topic_arn: str


class Observability(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """A dashboard and alarms for the control plane."""

    def __init__(self, scope: Construct, id_: str, props: ObservabilityProps) -> None:
        super().__init__(scope, id_)
        aws.cloudwatch_dashboard.CloudwatchDashboard(
            self,
            "dashboard",
            dashboard_name=props.prefix,
            dashboard_body=json.dumps({"widgets": _widgets(props)}),
        )
        for name, alarm in _alarms(props).items():
            actions = (props.topic_arn,)
            named = replace(alarm, name=f"{props.prefix}-{name}", actions=actions, recovery_actions=actions)
            Alarm(self, name, named)


def _alarms(props: ObservabilityProps) -> dict[str, AlarmProps]:
    database = {"DBInstanceIdentifier": props.database}
    return {
        "database-cpu": AlarmProps(
            name="",
            description="The database has been above 85 % CPU for ten minutes",
            namespace="AWS/RDS",
            metric="CPUUtilization",
            dimensions=database,
            statistic="Average",
            threshold=85,
            periods=10,
        ),
        "database-storage": AlarmProps(
            name="",
            description="The database has less than 10 GiB left",
            namespace="AWS/RDS",
            metric="FreeStorageSpace",
            dimensions=database,
            statistic="Minimum",
            comparison="LessThanThreshold",
            threshold=10 * 1024**3,
        ),
        "ui-errors": AlarmProps(
            name="",
            description="The UI answers with errors",
            namespace="AWS/ApplicationELB",
            metric="HTTPCode_Target_5XX_Count",
            dimensions={"LoadBalancer": props.ui_balancer},
            statistic="Sum",
            threshold=10,
        ),
        "gateway-down": AlarmProps(
            name="",
            description="No healthy gateway: workers go on with what they hold and get nothing new",
            namespace="AWS/NetworkELB",
            metric="HealthyHostCount",
            dimensions={"LoadBalancer": props.gateway_balancer, "TargetGroup": props.edge_targets},
            statistic="Minimum",
            comparison="LessThanThreshold",
            threshold=1,
            periods=2,
            missing="breaching",
        ),
    }


def _widgets(props: ObservabilityProps) -> list[dict[str, Any]]:
    pools = [(region, pool) for region, names in sorted(props.pools.items()) for pool in names]
    # A pool's alarms can only watch a metric of their own region, so that is where it is published.
    backlog = [
        [NAMESPACE, BACKLOG, "Region", region, "Pool", pool, {"region": region}] for region, pool in pools
    ]
    cpu = [
        ["AWS/ECS", "CPUUtilization", "ClusterName", props.cluster, "ServiceName", name]
        for name in props.services
    ]
    database = [
        ["AWS/RDS", metric, "DBInstanceIdentifier", props.database]
        for metric in ("CPUUtilization", "DatabaseConnections", "WriteLatency")
    ]
    gateway = [
        ["AWS/NetworkELB", metric, "LoadBalancer", props.gateway_balancer]
        for metric in ("ActiveFlowCount", "NewFlowCount", "TCP_Target_Reset_Count")
    ]
    charts = [
        ("Backlog per slot", backlog),
        ("Services: CPU", cpu),
        ("Database", database),
        ("Gateway", gateway),
    ]
    return [
        {
            "type": "metric",
            "x": 12 * (index % 2),
            "y": 6 * (index // 2),
            "width": 12,
            "height": 6,
            "properties": {
                "title": title,
                "region": props.region,
                "view": "timeSeries",
                "period": 60,
                "metrics": lines,
            },
        }
        for index, (title, lines) in enumerate(charts)
    ]
