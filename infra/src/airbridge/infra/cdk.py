"""Facade over cdktf and cdktn: every other module imports CDK for Terraform from here.

Two libraries offer the same API: `cdktf`, which the project uses, and `cdktn`, its continuation. Whichever is
installed is used, `cdktf` first. Provider resources are reached as `aws.<module>.<Class>`, for example
`aws.sqs_queue.SqsQueue`. The provider's own package module imports everything, which takes 20 s of
CPU and a gigabyte; an empty package module put in its place makes only the modules that are used load.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

from airbridge.infra.exceptions import InfraError

# jsii prints a banner about the age of Node.js to stderr on every synth.
os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")
os.environ.setdefault("JSII_SILENCE_WARNING_DEPRECATED_NODE_VERSION", "1")

__all__ = [
    "FLAVOUR",
    "App",
    "Aspects",
    "Construct",
    "DataResource",
    "DataTerraformRemoteStateS3",
    "Fn",
    "IAspect",
    "IConstruct",
    "IResolvable",
    "ITerraformDependable",
    "LocalBackend",
    "LocalExecProvisioner",
    "S3Backend",
    "TerraformElement",
    "TerraformOutput",
    "TerraformResource",
    "TerraformResourceLifecycle",
    "TerraformStack",
    "Testing",
    "Token",
    "aws",
    "literal",
    "literals",
]

_FLAVOURS = (("cdktf", "cdktf_cdktf_provider_aws"), ("cdktn", "cdktn_provider_aws"))


def _installed_flavour() -> tuple[str, str]:
    for core, provider in _FLAVOURS:
        if importlib.util.find_spec(core) and importlib.util.find_spec(provider):
            return core, provider
    names = " or ".join(" with ".join(flavour) for flavour in _FLAVOURS)
    raise InfraError(f"CDK for Terraform is not installed: install {names}")


class _ProviderModules:
    """The provider's resource modules as attributes, each imported when it is first used."""

    def __init__(self, package: str) -> None:
        self._package = package
        if package not in sys.modules:
            sys.modules[package] = self._empty_package(package)

    @staticmethod
    def _empty_package(package: str) -> types.ModuleType:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise InfraError(f"{package} is not a package: reinstall it")
        module = types.ModuleType(package)
        module.__path__ = list(spec.submodule_search_locations)
        module.__spec__ = spec
        return module

    def __getattr__(self, name: str) -> types.ModuleType:
        module = importlib.import_module(f"{self._package}.{name}")
        setattr(self, name, module)
        return module


# Not of a token, which the library writes as `${TfToken[…]}` until it knows the value.
_TEMPLATE = re.compile(r"[$%](?=\{(?!TfToken\[))")


def literal(text: str) -> str:
    """Return a text as Terraform leaves it: `${` and `%{`, which begin its templates, are escaped. Tokens stay what they are."""
    return _TEMPLATE.sub(lambda found: found[0] * 2, text)


def literals(value: object) -> object:
    """Return a value with `literal` of all texts in it."""
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, Mapping):
        return {literals(name): literals(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [literals(each) for each in value]
    return value


FLAVOUR, _PROVIDER_PACKAGE = _installed_flavour()


if TYPE_CHECKING:
    # What type checkers and editors see: cdktf's own types, which hold for cdktn too. mypy runs in infra/.venv for this.
    from cdktf import (
        App,
        Aspects,
        DataResource,
        DataTerraformRemoteStateS3,
        Fn,
        IAspect,
        IResolvable,
        ITerraformDependable,
        LocalBackend,
        LocalExecProvisioner,
        S3Backend,
        TerraformElement,
        TerraformOutput,
        TerraformResource,
        TerraformResourceLifecycle,
        TerraformStack,
        Testing,
        Token,
    )
    from constructs import Construct, IConstruct

    from airbridge.infra import _aws as aws
else:
    aws = _ProviderModules(_PROVIDER_PACKAGE)

    def __getattr__(name: str) -> object:
        """Return a class of the library that is installed."""
        library = "constructs" if name in {"Construct", "IConstruct"} else FLAVOUR
        return getattr(importlib.import_module(library), name)
