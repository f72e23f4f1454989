"""Tags and permissions boundary by aspect: every resource that takes them has them, whatever made it.

One aspect for both: each visit of a node is a call from JavaScript to Python, and forty regions have 7,000 nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import jsii

from airbridge.infra.cdk import IAspect, IConstruct, TerraformResource, aws


class _Taggable(Protocol):
    """Resource whose tags are a plain mapping; the provider's classes have no base class for it."""

    tags: Mapping[str, str]

    @property
    def tags_input(self) -> Mapping[str, str] | None: ...


@jsii.implements(IAspect)
class Defaults:
    """Adds tags to every resource that takes them, its own win, and a boundary to every role: the deploy role makes no others."""

    def __init__(self, tags: Mapping[str, str], boundary_arn: str | None) -> None:
        self._tags, self._boundary_arn = dict(tags), boundary_arn

    def visit(self, node: IConstruct) -> None:
        """Complete one node of the tree."""
        # Only what has settable tags: data sources and autoscaling groups (a list of blocks) do not.
        if isinstance(node, TerraformResource) and isinstance(getattr(type(node), "tags", None), property):
            taggable = cast("_Taggable", node)
            taggable.tags = {**self._tags, **(taggable.tags_input or {})}
        if self._boundary_arn is not None and isinstance(node, aws.iam_role.IamRole):
            node.permissions_boundary = self._boundary_arn
