"""A region's shared things: its queues, its dead letters, its log and snapshot buckets, its alarms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airbridge.infra import observability_definitions
from airbridge.infra.cdk import Construct, TerraformResourceLifecycle, aws
from airbridge.infra.constructs.iam.policy import Statement, policy_document, tls_only
from airbridge.infra.constructs.monitoring.alarm import Alarm, AlarmProps
from airbridge.infra.constructs.monitoring.topic import AlarmTopic, TopicProps
from airbridge.infra.constructs.storage.bucket import BucketProps, PrivateBucket
from airbridge.infra.observability_definitions import AlarmDefinition

# A work item is claimed within seconds of being received; this covers a slow claim, not a task.
VISIBILITY_SECONDS = 120
MAX_RECEIVES = 5
RETENTION_SECONDS = 14 * 24 * 3600

_WHY_NO_COPY = {
    "logs": "logs of a region's tasks belong to that region; what they show of its data must not leave it",
    "bundles": "every region has a copy: the control plane publishes each snapshot to all of them",
}
_SEND = ("sqs:SendMessage",)
_RECEIVE = ("sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:ReceiveMessage")


@dataclass(frozen=True)
class PoolQueue:
    """A pool's queue, and the role that receives from it: its workers', or the gateway's on behalf of a site's."""

    name: str
    receiver_arn: str


@dataclass(frozen=True)
class EdgeRegionProps:
    """Names of a region's resources, who sends, and how long things are kept. `region` is the catalogue's name for it."""

    region: str
    account: str
    key_arn: str
    sender_arn: str
    queues: Mapping[str, PoolQueue]
    dead_letter_queue: str
    log_bucket: str
    bundle_bucket: str
    log_days: int
    alarm_prefix: str
    #: Protocol and endpoint of each.
    alarm_subscriptions: Sequence[tuple[str, str]] = ()
    #: A topic that is there already; without one the region gets its own.
    topic_arn: str | None = None
    protect: bool = True


class EdgeRegion(Construct):
    """Queues by pool with one dead-letter queue, the log and snapshot buckets, and the region's alarms."""

    def __init__(self, scope: Construct, id_: str, props: EdgeRegionProps) -> None:
        super().__init__(scope, id_)
        self._props = props
        self.dead_letters = self._queue("dead-letters", props.dead_letter_queue)
        self.queues = {pool: self._work_queue(pool, queue) for pool, queue in props.queues.items()}
        self._only_own_dead_letters()
        self.logs = self._bucket("logs", props.log_bucket, props.log_days)
        self.bundles = self._bucket("bundles", props.bundle_bucket, None)
        self.topic_arn = props.topic_arn or self._topic().arn
        self._alarms()

    def _topic(self) -> AlarmTopic:
        props = self._props
        return AlarmTopic(
            self,
            "alarms",
            TopicProps(
                f"{props.alarm_prefix}-alarms",
                key_arn=props.key_arn,
                account=props.account,
                subscriptions=props.alarm_subscriptions,
            ),
        )

    def _bucket(self, id_: str, name: str, days: int | None) -> PrivateBucket:
        return PrivateBucket(
            self,
            id_,
            BucketProps(
                name=name,
                key_arn=self._props.key_arn,
                why_no_copy=_WHY_NO_COPY[id_],
                expire_days=days,
                protect=self._props.protect,
            ),
        )

    def _queue(
        self,
        id_: str,
        name: str,
        *,
        visibility_seconds: int | None = None,
        wait_seconds: int | None = None,
        redrive: str | None = None,
    ) -> aws.sqs_queue.SqsQueue:
        return aws.sqs_queue.SqsQueue(
            self,
            id_,
            name=name,
            kms_master_key_id=self._props.key_arn,
            kms_data_key_reuse_period_seconds=300,
            message_retention_seconds=RETENTION_SECONDS,
            lifecycle=TerraformResourceLifecycle(prevent_destroy=self._props.protect),
            visibility_timeout_seconds=visibility_seconds,
            receive_wait_time_seconds=wait_seconds,
            redrive_policy=redrive,
        )

    def _work_queue(self, pool: str, queue: PoolQueue) -> aws.sqs_queue.SqsQueue:
        redrive = _plain_json({"deadLetterTargetArn": self.dead_letters.arn, "maxReceiveCount": MAX_RECEIVES})
        made = self._queue(
            f"queue-{pool}",
            queue.name,
            visibility_seconds=VISIBILITY_SECONDS,
            wait_seconds=20,
            redrive=redrive,
        )
        aws.sqs_queue_policy.SqsQueuePolicy(
            self,
            f"queue-{pool}-policy",
            queue_url=made.url,
            policy=policy_document(
                (
                    tls_only("sqs:*", (made.arn,)),
                    _nobody_but("OnlyTheControlPlaneSends", _SEND, made.arn, self._props.sender_arn),
                    _nobody_but("OnlyThisPoolReceives", _RECEIVE, made.arn, queue.receiver_arn),
                )
            ),
        )
        return made

    def _only_own_dead_letters(self) -> None:
        aws.sqs_queue_policy.SqsQueuePolicy(
            self,
            "dead-letters-policy",
            queue_url=self.dead_letters.url,
            policy=policy_document((tls_only("sqs:*", (self.dead_letters.arn,)),)),
        )
        aws.sqs_queue_redrive_allow_policy.SqsQueueRedriveAllowPolicy(
            self,
            "dead-letters-sources",
            queue_url=self.dead_letters.url,
            redrive_allow_policy=_plain_json(
                {
                    "redrivePermission": "byQueue",
                    "sourceQueueArns": [queue.arn for queue in self.queues.values()],
                }
            ),
        )

    def _alarms(self) -> None:
        """Alarms on this region's own metrics; metrics published by gateways are watched in the home region."""
        props = self._props
        region = {"region": props.region, "dead_letter_queue": props.dead_letter_queue}
        for alarm in observability_definitions.alarms(observability_definitions.REGION):
            self._alarm(alarm, region, "")
        for pool, queue in props.queues.items():
            for alarm in observability_definitions.alarms(observability_definitions.POOL):
                self._alarm(alarm, {**region, "pool": pool, "queue": queue.name}, f"-{pool}")

    def _alarm(self, alarm: AlarmDefinition, values: Mapping[str, str], of_pool: str) -> None:
        if observability_definitions.own(alarm):
            return
        prefix = f"{self._props.alarm_prefix}{of_pool}"
        made = AlarmProps.of(alarm, values, prefix=prefix, topic_arn=self.topic_arn)
        Alarm(self, f"{alarm.name}{of_pool}", made)


def _plain_json(value: object) -> str:
    """JSON as Terraform's provider plans it: sorted, without spaces.

    The provider sends a redrive policy as it is written and compares what comes back with the text that it would have
    written: spaces show as a change at every plan, where the queue service gives back what it was sent.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _nobody_but(sid: str, actions: tuple[str, ...], queue_arn: str, principal_arn: str) -> Statement:
    return Statement(
        sid=sid,
        effect="Deny",
        actions=actions,
        resources=(queue_arn,),
        principals={"AWS": "*"},
        conditions={"ArnNotEquals": {"aws:PrincipalArn": principal_arn}},
    )
