"""Topic of the alarms: an encrypted SNS topic that CloudWatch alone may publish to."""

from __future__ import annotations

from dataclasses import dataclass

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.iam.policy import Statement, policy_document, tls_only


@dataclass(frozen=True)
class TopicProps:
    """A topic's name, its key, and the account whose alarms may publish to it."""

    name: str
    key_arn: str
    account: str


class AlarmTopic(Construct):
    """Topic of the alarms; subscriptions are made outside of these stacks."""

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

    @property
    def arn(self) -> str:
        """The topic's ARN."""
        return str(self.topic.arn)
