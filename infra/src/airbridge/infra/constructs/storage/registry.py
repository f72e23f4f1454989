"""Image repositories in the home region: tags never move, pushes are scanned, edge regions get copies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, TerraformResourceLifecycle, aws


@dataclass(frozen=True)
class RegistryProps:
    """Repository names by image, the key, and the regions that get copies of what starts with `prefix`."""

    repositories: Mapping[str, str]
    prefix: str
    key_arn: str
    account: str
    copies: Sequence[str]
    protect: bool = True


class Registry(Construct):
    """ECR repositories with immutable tags, scanned on push and replicated."""

    def __init__(self, scope: Construct, id_: str, props: RegistryProps) -> None:
        super().__init__(scope, id_)
        self.repositories = {
            image: self._repository(image, name, props) for image, name in props.repositories.items()
        }
        if props.copies:
            self._replicate(props)

    def _repository(self, image: str, name: str, props: RegistryProps) -> aws.ecr_repository.EcrRepository:
        ecr = aws.ecr_repository
        repository = ecr.EcrRepository(
            self,
            image,
            name=name,
            image_tag_mutability="IMMUTABLE",
            force_delete=not props.protect,
            image_scanning_configuration=ecr.EcrRepositoryImageScanningConfiguration(scan_on_push=True),
            encryption_configuration=[
                ecr.EcrRepositoryEncryptionConfiguration(encryption_type="KMS", kms_key=props.key_arn)
            ],
            lifecycle=TerraformResourceLifecycle(prevent_destroy=props.protect),
        )
        # Untagged only: whatever a release names stays, so that any digest can be gone back to.
        untagged = {
            "tagStatus": "untagged",
            "countType": "sinceImagePushed",
            "countUnit": "days",
            "countNumber": 14,
        }
        rule = {"rulePriority": 1, "selection": untagged, "action": {"type": "expire"}}
        aws.ecr_lifecycle_policy.EcrLifecyclePolicy(
            self, f"{image}-lifecycle", repository=repository.name, policy=json.dumps({"rules": [rule]})
        )
        return repository

    def _replicate(self, props: RegistryProps) -> None:
        ecr = aws.ecr_replication_configuration
        prefix = "EcrReplicationConfigurationReplicationConfiguration"
        rule = getattr(ecr, f"{prefix}Rule")(
            destination=[
                getattr(ecr, f"{prefix}RuleDestination")(region=region, registry_id=props.account)
                for region in props.copies
            ],
            repository_filter=[
                getattr(ecr, f"{prefix}RuleRepositoryFilter")(filter=props.prefix, filter_type="PREFIX_MATCH")
            ],
        )
        ecr.EcrReplicationConfiguration(
            self, "copies", replication_configuration=getattr(ecr, prefix)(rule=[rule])
        )
