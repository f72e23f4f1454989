"""The control plane's Postgres: encrypted, backed up, reached over TLS from the control plane's services alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airbridge.infra import aws_facts
from airbridge.infra.cdk import Construct, TerraformResourceLifecycle, aws
from airbridge.infra.constructs.checks import accept
from airbridge.infra.constructs.iam.policy import Statement, assumed_by_service
from airbridge.infra.constructs.iam.role import Role, RoleProps
from airbridge.infra.constructs.network.network import Network

PORT = 5432
# What AWS's own AmazonRDSEnhancedMonitoringRole allows.
_MONITORING = (
    Statement(
        sid="MakeLogGroups",
        actions=("logs:CreateLogGroup", "logs:PutRetentionPolicy"),
        resources=("arn:aws:logs:*:*:log-group:RDS*",),
    ),
    Statement(
        sid="WriteLogStreams",
        actions=("logs:CreateLogStream", "logs:DescribeLogStreams", "logs:GetLogEvents", "logs:PutLogEvents"),
        resources=("arn:aws:logs:*:*:log-group:RDS*:log-stream:*",),
    ),
)


@dataclass(frozen=True)
class DatabaseProps:
    """A database's size, its key, and how well it is kept."""

    name: str
    account: str
    instance_class: str
    storage_gib: int
    multi_az: bool
    backup_days: int
    key_arn: str
    deletion_protection: bool
    protect: bool = True


class Database(Construct):
    """RDS Postgres; AWS makes and rotates the master password, in Secrets Manager."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        network: Network,
        clients: Sequence[aws.security_group.SecurityGroup],
        props: DatabaseProps,
    ) -> None:
        super().__init__(scope, id_)
        self.group = network.security_group("database", "Postgres from the control plane's services")
        for client in clients:
            network.allow_in(self.group, f"from-{client.node.id}", PORT, source=client)
        self.instance = self._instance(network, props)

    @property
    def secret_arn(self) -> str:
        """The secret that holds the rotated user and password."""
        return str(self.instance.master_user_secret.get(0).secret_arn)

    def _instance(self, network: Network, props: DatabaseProps) -> aws.db_instance.DbInstance:
        subnets = aws.db_subnet_group.DbSubnetGroup(
            self, "subnets", name=props.name, subnet_ids=network.private_subnet_ids
        )
        instance = self._resource(props, subnets.name)
        if not props.multi_az:
            accept(
                instance,
                "CKV_AWS_157",
                "this environment asks for no standby; production is refused without one",
            )
        if not props.deletion_protection:
            accept(
                instance,
                "CKV_AWS_293",
                "this environment is made to be destroyed; production is refused without",
            )
        return instance

    def _resource(self, props: DatabaseProps, subnet_group: str) -> aws.db_instance.DbInstance:
        return aws.db_instance.DbInstance(
            self,
            "instance",
            identifier=props.name,
            engine="postgres",
            engine_version=aws_facts.POSTGRES,
            instance_class=props.instance_class,
            db_name="airflow",
            username="airflow",
            manage_master_user_password=True,
            master_user_secret_kms_key_id=props.key_arn,
            iam_database_authentication_enabled=True,
            allocated_storage=props.storage_gib,
            # Storage grows by itself up to this: a full disk stops Postgres.
            max_allocated_storage=props.storage_gib * 4,
            storage_type="gp3",
            storage_encrypted=True,
            kms_key_id=props.key_arn,
            multi_az=props.multi_az,
            db_subnet_group_name=subnet_group,
            vpc_security_group_ids=[self.group.id],
            publicly_accessible=False,
            parameter_group_name=self._parameters(props).name,
            backup_retention_period=props.backup_days,
            # UTC; RDS refuses a backup window that overlaps the maintenance window.
            backup_window="02:00-03:00",
            maintenance_window="sun:03:30-sun:04:30",
            copy_tags_to_snapshot=True,
            delete_automated_backups=False,
            deletion_protection=props.deletion_protection,
            # Always, also of an environment that is made to be destroyed: what is deleted by mistake comes back.
            skip_final_snapshot=False,
            # The time of creation, fixed in the state: the name of an earlier instance's snapshot is taken.
            final_snapshot_identifier=f'{props.name}-final-${{formatdate("YYYYMMDDhhmmss", timestamp())}}',
            auto_minor_version_upgrade=True,
            enabled_cloudwatch_logs_exports=["postgresql", "upgrade"],
            performance_insights_enabled=True,
            performance_insights_kms_key_id=props.key_arn,
            # Days; 7 is the free tier of Performance Insights.
            performance_insights_retention_period=7,
            monitoring_interval=60,
            monitoring_role_arn=self._monitoring_role(props).arn,
            ca_cert_identifier="rds-ca-rsa2048-g1",
            lifecycle=TerraformResourceLifecycle(
                prevent_destroy=props.protect, ignore_changes=["final_snapshot_identifier"]
            ),
        )

    def _parameters(self, props: DatabaseProps) -> aws.db_parameter_group.DbParameterGroup:
        group = aws.db_parameter_group
        settings = {
            "log_connections": "1",
            "log_disconnections": "1",
            "log_statement": "ddl",
            "rds.force_ssl": "1",
        }
        settings["log_min_duration_statement"] = "1000"
        return group.DbParameterGroup(
            self,
            "parameters",
            name=props.name,
            family=f"postgres{aws_facts.POSTGRES}",
            parameter=[
                group.DbParameterGroupParameter(name=name, value=value)
                for name, value in sorted(settings.items())
            ],
        )

    def _monitoring_role(self, props: DatabaseProps) -> Role:
        return Role(
            self,
            "monitoring",
            RoleProps(
                name=f"{props.name}-monitoring",
                description="RDS writes its enhanced monitoring",
                trust=(assumed_by_service("monitoring.rds.amazonaws.com", props.account),),
                statements=_MONITORING,
            ),
        )
