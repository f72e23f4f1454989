"""Exceptions of `airbridge.infra`.

InfraError
├── EnvironmentFileError    an environment file cannot be read, or a key in it is wrong
├── UnsafeStackError        the stacks refuse to be synthesised like this
├── ReleaseError            an image is in no signed release, or a release is not signed by a trusted key
├── PolicyError             an IAM statement is broader than the project allows
├── CatalogueError          Terraform's outputs do not make a region catalogue
├── EmulatorError           the local emulator did not start, or answers wrongly
└── CommandFailedError      a tool that was called (cdktf, terraform, checkov) failed
"""

from __future__ import annotations


class InfraError(Exception):
    """Anything that `airbridge.infra` reports to its user."""


class EnvironmentFileError(InfraError):
    """An environment file cannot be read, or a key in it is wrong; the message names file and key."""


class UnsafeStackError(InfraError):
    """The stacks refuse to be synthesised like this."""


class ReleaseError(InfraError):
    """An image is in no signed release, or a release is not signed by a trusted key."""


class PolicyError(InfraError):
    """An IAM statement is broader than the project allows."""


class CatalogueError(InfraError):
    """Terraform's outputs do not make a region catalogue."""


class EmulatorError(InfraError):
    """The local emulator did not start, or answers wrongly."""


class CommandFailedError(InfraError):
    """A tool that was called (cdktf, terraform, checkov) failed."""
