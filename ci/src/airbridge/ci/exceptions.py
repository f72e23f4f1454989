"""Exceptions of airbridge.ci.

CiError
├── CheckoutError       the folder is not a checkout of the project, or a file of it cannot be read
├── ToolError           a program we called is missing or failed; carries the end of its output
├── BuildError          an image, wheel or SBOM could not be built as described
├── ManifestError       a release manifest is malformed, unsigned, altered or signed by an untrusted key
├── RegistryError       a registry refused a call, or holds something other than it should
├── ControlPlaneError   the control plane's API could not be reached or refused the call
├── PromotionRefused    a release may not move; names the rule that forbids it
└── RolloutFailed       a wave spent its error budget and was rolled back
"""

from __future__ import annotations


class CiError(Exception):
    """Base class; the message is for the person at the pipeline."""


class CheckoutError(CiError):
    """The folder is not a checkout of the project, or a file of it cannot be read."""


class ToolError(CiError):
    """A program that we called is missing or failed."""


class BuildError(CiError):
    """An image, wheel or SBOM could not be built as described."""


class ManifestError(CiError):
    """A release manifest is malformed, unsigned, altered or signed by an untrusted key."""


class RegistryError(CiError):
    """A registry refused a call, or holds something other than it should."""


class ControlPlaneError(CiError):
    """The control plane's API could not be reached or refused the call."""


class PromotionRefused(CiError):  # noqa: N818 - what happened to the release
    """A release may not move; the message names the rule that forbids it."""


class RolloutFailed(CiError):  # noqa: N818 - what happened to the wave
    """A wave spent its error budget and was rolled back."""
