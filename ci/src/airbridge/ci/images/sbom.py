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
        "dependencies": _graph(name, layout, inventory),
    }
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def packages(content: bytes) -> set[tuple[str, str, str]]:
    """(kind, name, version) of every component of such a document."""
    return {
        (str(part["purl"]).removeprefix("pkg:").split("/")[0], str(part["name"]), str(part["version"]))
        for part in json.loads(content)["components"]
    }


def _graph(name: str, layout: Layout, inventory: Inventory) -> list[dict[str, Any]]:
    """Return the edges of the image and of each component, by reference; a component without any is listed, too."""
    refs: dict[tuple[str, str], list[str]] = {}
    for package in inventory.packages:
        ref = _purl(package, inventory.system)
        refs.setdefault((package.kind, package.name), []).append(ref)
        refs.setdefault((package.kind, f"{package.name}@{package.version}"), []).append(ref)
    everything = sorted({_purl(package, inventory.system) for package in inventory.packages})
    edges = {_image_ref(name, layout): everything}
    for package in inventory.packages:
        needed = {ref for each in package.requires for ref in refs.get(each, ())}
        edges.setdefault(_purl(package, inventory.system), []).extend(sorted(needed))
    return [{"ref": ref, "dependsOn": needed} for ref, needed in edges.items()]


def _image_ref(name: str, layout: Layout) -> str:
    return f"pkg:oci/{name}@{quote(layout.digest, safe='')}"


def _image(name: str, layout: Layout) -> dict[str, Any]:
    digest, ref = layout.digest, _image_ref(name, layout)
    labels = layout.config.get("config", {}).get("Labels") or {}
    return {
        "type": "container",
        "bom-ref": ref,
        "name": name,
        "version": digest,
        "hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}],
        "purl": f"{ref}?arch={layout.config['architecture']}",
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
    if package.files:
        component["hashes"] = [{"alg": "SHA-256", "content": package.files}]
        component["properties"] = [{"name": "airbridge:hash-of", "value": "sha256sum of its files, by path"}]
    if package.license:
        component["licenses"] = [{"license": {"name": package.license}}]
    return component


def _purl(package: Package, system: str) -> str:
    version = quote(package.version, safe=".-~")
    if package.kind != "deb":
        return f"pkg:{package.kind}/{package.name}@{version}"
    return (
        f"pkg:deb/debian/{quote(package.name, safe='.-')}@{version}"
        f"?arch={package.architecture}&distro=debian-{system}&upstream={quote(package.source, safe='.-')}"
    )
