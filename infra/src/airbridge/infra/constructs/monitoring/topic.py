"""Topic of the alarms: an encrypted SNS topic that CloudWatch alone may publish to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from airbridge.infra.cdk import Construct, aws, literal
from airbridge.infra.constructs.iam.policy import Statement, policy_document, tls_only


@dataclass(frozen=True)
class TopicProps:
    """A topic's name, its key, the account whose alarms may publish to it, and who is told (protocol and endpoint)."""

    name: str
    key_arn: str
    account: str
    subscriptions: Sequence[tuple[str, str]] = ()


class AlarmTopic(Construct):
    """Topic of the alarms, and its subscriptions."""

    def __init__(self, scope: Construct, id_: str, props: TopicProps) -> None:
        super().__init__(scope, id_)
        self.topic = aws.sns_topic.SnsTopic(self, "topic", name=props.name, kms_master_key_id=props.key_arn)
        publish = Statement(
            sid="AlarmsPublish",
            actions=("sns:Publish",),
            resources=(self.arn,),
            principals={"Service": "cloudwatch.amazonaws.com"},
            conditions={"StringEquals": {"aws:SourceAccount": props.account}},
        )
        aws.sns_topic_policy.SnsTopicPolicy(
            self,
            "policy",
            arn=self.arn,
            policy=policy_document([publish, tls_only("sns:Publish", (self.arn,))]),
        )
        for protocol, endpoint in props.subscriptions:
            aws.sns_topic_subscription.SnsTopicSubscription(
                self,
                # By what it is, not by its place in a list, which a removed one would move.
                f"subscription-{sha256(f'{protocol} {endpoint}'.encode()).hexdigest()[:8]}",
                topic_arn=self.arn,
                protocol=protocol,
                endpoint=literal(endpoint),
            )

    @property
    def arn(self) -> str:
        """The topic's ARN."""
        return str(self.topic.arn)
