"""Dashboard for people on call, and the alarms on metrics of the home region."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airbridge.infra import observability_definitions
from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.monitoring.alarm import Alarm, AlarmProps
from airbridge.infra.observability_definitions import PanelDefinition


@dataclass(frozen=True)
class ObservabilityProps:
    """Watched resources, by the names and ARN suffixes of CloudWatch's dimensions."""

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
    #: Regions of AWS beside the sites, by site: a site is a region in `pools` as well.
    sites: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, str]:
        """By the names that the definitions have for them."""
        names = ("database", "cluster", "ui_balancer", "gateway_balancer", "edge_targets")
        return {name: getattr(self, name) for name in names}

    def label(self, region: str) -> str:
        """Return the part of the names of alarms that a region has: a site's is no region's and pool's together."""
        return f"site-{region}" if region in self.sites else region

    @property
    def places(self) -> list[tuple[str, str]]:
        """Every pool of every region."""
        return [(region, pool) for region, names in sorted(self.pools.items()) for pool in names]


class Observability(Construct):
    """A dashboard, the control plane's alarms, and those on what gateways publish of each region and pool."""

    def __init__(self, scope: Construct, id_: str, props: ObservabilityProps) -> None:
        super().__init__(scope, id_)
        aws.cloudwatch_dashboard.CloudwatchDashboard(
            self,
            "dashboard",
            dashboard_name=props.prefix,
            dashboard_body=json.dumps({"widgets": list(_widgets(props))}),
        )
        for where, alarm, values in _alarms(props):
            prefix = f"{props.prefix}-{where}" if where else props.prefix
            made = AlarmProps.of(alarm, values, prefix=prefix, topic_arn=props.topic_arn)
            Alarm(self, f"{where}-{alarm.name}" if where else alarm.name, made)


def _alarms(
    props: ObservabilityProps,
) -> Iterator[tuple[str, observability_definitions.AlarmDefinition, dict[str, str]]]:
    """Each alarm with where it is for, and the values to fill it with. What a region measures itself, its own stack watches."""
    for alarm in observability_definitions.alarms(observability_definitions.CONTROL_PLANE):
        yield "", alarm, props.values
    for alarm in filter(
        observability_definitions.own, observability_definitions.alarms(observability_definitions.REGION)
    ):
        for region in sorted(props.pools):
            yield props.label(region), alarm, {"region": region}
    for alarm in filter(
        observability_definitions.own, observability_definitions.alarms(observability_definitions.POOL)
    ):
        for region, pool in props.places:
            yield f"{props.label(region)}-{pool}", alarm, {"region": region, "pool": pool}


def _widgets(props: ObservabilityProps) -> Iterator[dict[str, Any]]:
    for index, panel in enumerate(observability_definitions.panels()):
        yield {
            "type": "metric",
            "x": 12 * (index % 2),
            "y": 6 * (index // 2),
            "width": 12,
            "height": 6,
            "properties": {
                "title": panel.title,
                "region": props.region,
                "view": "timeSeries",
                "period": 60,
                "metrics": list(_lines(panel, props)),
            },
        }


def _lines(panel: PanelDefinition, props: ObservabilityProps) -> Iterator[list[Any]]:
    for values in _subjects(panel.each, props):
        for line in panel.lines:
            if "expression" in line:
                yield [{"expression": line["expression"]}]
                continue
            dimensions = observability_definitions.filled(line["dimensions"], values)
            # A pool's signal is published in its own region, where the alarms that scale it are.
            where = props.sites.get(values.get("region", ""), values.get("region"))
            elsewhere = [{"region": where}] if panel.each == observability_definitions.POOL else []
            pairs = [part for pair in dimensions.items() for part in pair]
            yield [line["namespace"], line["metric"], *pairs, *elsewhere]


def _subjects(each: str, props: ObservabilityProps) -> list[dict[str, str]]:
    if each == "service":
        return [{**props.values, "service": name} for name in props.services]
    if each == observability_definitions.POOL:
        return [{"region": region, "pool": pool} for region, pool in props.places]
    return [props.values]
