"""The software bill of materials of an image, as CycloneDX 1.6 JSON: the same image gives the same bytes."""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import quote

from airbridge.ci.images.inventory import Inventory, Package
from airbridge.ci.images.layout import Layout

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_NAMESPACE = uuid.UUID("6f1b3a1e-6a5e-5c0b-9f0e-0f1b9a3c7d24")


def document(name: str, layout: Layout, inventory: Inventory) -> bytes:
    """The SBOM of `name`. Nothing in it depends on when or where it is made."""
    content = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, layout.digest)}",
        "version": 1,
        "metadata": {"component": _image(name, layout)},
        "components": [_component(package, inventory.system) for package in inventory.packages],
    }
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def packages(content: bytes) -> set[tuple[str, str, str]]:
    """(kind, name, version) of every component of such a document."""
    return {
        (str(part["purl"]).removeprefix("pkg:").split("/")[0], str(part["name"]), str(part["version"]))
        for part in json.loads(content)["components"]
    }


def _image(name: str, layout: Layout) -> dict[str, Any]:
    digest = layout.digest
    labels = layout.config.get("config", {}).get("Labels") or {}
    return {
        "type": "container",
        "bom-ref": f"pkg:oci/{name}@{quote(digest, safe='')}",
        "name": name,
        "version": digest,
        "purl": f"pkg:oci/{name}@{quote(digest, safe='')}?arch={layout.config['architecture']}",
        "properties": [{"name": key, "value": value} for key, value in sorted(labels.items())],
    }


def _component(package: Package, system: str) -> dict[str, Any]:
    purl = _purl(package, system)
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
    }
    if package.license:
        component["licenses"] = [{"license": {"name": package.license}}]
    return component


def _purl(package: Package, system: str) -> str:
    version = quote(package.version, safe=".-~")
    if package.kind == "pypi":
        return f"pkg:pypi/{package.name}@{version}"
    return (
        f"pkg:deb/debian/{quote(package.name, safe='.-')}@{version}"
        f"?arch={package.architecture}&distro=debian-{system}&upstream={quote(package.source, safe='.-')}"
    )
