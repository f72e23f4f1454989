"""Deployment: images, pipelines, protection, subscriptions of the alarms."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from airbridge.infra.environment.values import DerivedImages, ImageReference, Model


class Subscription(Model):
    """Subscription of the alarms."""

    protocol: Literal["email", "https", "sqs", "lambda"] = Field(description="how")
    endpoint: Annotated[
        str,
        Field(
            pattern=r"^\S+$",
            description="address, URL or ARN; an address must confirm each region's topic",
        ),
    ]


class Images(Model):
    """Images by digest, in the repositories that the foundation's stack creates."""

    control_plane: ImageReference = Field(description="image of the control plane's services")
    worker: ImageReference = Field(description="image of the workers")
    previous_worker: Annotated[
        ImageReference | None,
        Field(description="previous worker image, admitted until the next release, for rolling upgrades"),
    ] = None
    derived: DerivedImages = Field(
        default={}, description="derived worker images by name, which pools name with `image`"
    )
    previous_derived: DerivedImages = Field(
        default={}, description="previous derived images, admitted until the next release"
    )

    @property
    def admitted(self) -> tuple[str, ...]:
        """The digests of the worker images that the control plane gives work."""
        references = (
            self.worker,
            self.previous_worker,
            *self.derived.values(),
            *self.previous_derived.values(),
        )
        return tuple(reference.partition("@")[2] for reference in references if reference)

    @property
    def repositories(self) -> dict[str, str]:
        """The repositories of all images, by their key here; derived images by their name."""
        references = {"control_plane": self.control_plane, "worker": self.worker}
        references |= self.previous_derived | self.derived
        return {key: reference.partition("@")[0] for key, reference in references.items()}


class Pipelines(Model):
    """GitHub repository and deployment environment that may deploy."""

    repository: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+$", description="owner/name on GitHub")
    ]
    deployment_environment: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_.-]+$", description="deployment environment of that repository")
    ]


class Protection(Model):
    """Protection of data against mistakes."""

    deletion: bool = Field(
        default=True, description="deletion protection of queues, buckets, keys, database and secrets"
    )
