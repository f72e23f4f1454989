"""A private bucket: encrypted under a key, TLS only, versioned, never public."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, TerraformResourceLifecycle, aws
from airbridge.infra.constructs.checks import accept
from airbridge.infra.constructs.iam.policy import Statement, policy_document, tls_only


@dataclass(frozen=True)
class BucketProps:
    """A bucket's name and key; the reason to have no copy in another region; how many days its objects are kept (None: for ever)."""

    name: str
    key_arn: str
    why_no_copy: str
    expire_days: int | None
    noncurrent_days: int = 30
    protect: bool = True
    statements: Sequence[Statement] = ()


class PrivateBucket(Construct):
    """A bucket that only its account's roles reach, over TLS, and that encrypts whatever is put into it."""

    def __init__(self, scope: Construct, id_: str, props: BucketProps) -> None:
        super().__init__(scope, id_)
        self.bucket = aws.s3_bucket.S3Bucket(
            self,
            "bucket",
            bucket=props.name,
            force_destroy=not props.protect,
            lifecycle=TerraformResourceLifecycle(prevent_destroy=props.protect),
        )
        self._close()
        self._encrypt(props.key_arn)
        versioning = self._version()
        self._expire(props, versioning)
        aws.s3_bucket_policy.S3BucketPolicy(
            self,
            "policy",
            bucket=self.bucket.id,
            policy=policy_document([tls_only("s3:*", (self.arn, f"{self.arn}/*")), *props.statements]),
        )
        accept(self.bucket, "CKV_AWS_144", props.why_no_copy)
        accept(
            self.bucket,
            "CKV_AWS_18",
            "not logged by these stacks: the account's trail has to select data events (docs/how-to/operate-on-aws.md#log-access)",
        )
        accept(self.bucket, "CKV2_AWS_62", "nothing reacts to new objects; readers are told where to look")

    @property
    def arn(self) -> str:
        """The bucket's ARN."""
        return str(self.bucket.arn)

    @property
    def name(self) -> str:
        """The bucket's name."""
        return str(self.bucket.bucket)

    def _close(self) -> None:
        aws.s3_bucket_public_access_block.S3BucketPublicAccessBlock(
            self,
            "closed",
            bucket=self.bucket.id,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
        )
        ownership = aws.s3_bucket_ownership_controls
        ownership.S3BucketOwnershipControls(
            self,
            "owned",
            bucket=self.bucket.id,
            rule=ownership.S3BucketOwnershipControlsRule(object_ownership="BucketOwnerEnforced"),
        )

    def _encrypt(self, key_arn: str) -> None:
        sse = aws.s3_bucket_server_side_encryption_configuration
        by_default = sse.S3BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultA(
            sse_algorithm="aws:kms", kms_master_key_id=key_arn
        )
        sse.S3BucketServerSideEncryptionConfigurationA(
            self,
            "encryption",
            bucket=self.bucket.id,
            rule=[
                sse.S3BucketServerSideEncryptionConfigurationRuleA(
                    apply_server_side_encryption_by_default=by_default, bucket_key_enabled=True
                )
            ],
        )

    def _version(self) -> aws.s3_bucket_versioning.S3BucketVersioningA:
        versioning = aws.s3_bucket_versioning
        return versioning.S3BucketVersioningA(
            self,
            "versioning",
            bucket=self.bucket.id,
            versioning_configuration=versioning.S3BucketVersioningVersioningConfiguration(status="Enabled"),
        )

    def _expire(self, props: BucketProps, versioning: aws.s3_bucket_versioning.S3BucketVersioningA) -> None:
        lifecycle = aws.s3_bucket_lifecycle_configuration
        rule = lifecycle.S3BucketLifecycleConfigurationRule(
            id="expire",
            status="Enabled",
            filter=[lifecycle.S3BucketLifecycleConfigurationRuleFilter(prefix="")],
            abort_incomplete_multipart_upload=[
                lifecycle.S3BucketLifecycleConfigurationRuleAbortIncompleteMultipartUpload(
                    days_after_initiation=7
                )
            ],
            noncurrent_version_expiration=[
                lifecycle.S3BucketLifecycleConfigurationRuleNoncurrentVersionExpiration(
                    noncurrent_days=props.noncurrent_days
                )
            ],
            expiration=None
            if props.expire_days is None
            else [lifecycle.S3BucketLifecycleConfigurationRuleExpiration(days=props.expire_days)],
        )
        lifecycle.S3BucketLifecycleConfiguration(
            self, "lifecycle", bucket=self.bucket.id, rule=[rule], depends_on=[versioning]
        )
