"""Write helm_schema.json anew: ``npm pack @cdktf/provider-helm@VERSION``, unpack it, and run this with the folder ``package``.

The bindings of CDK for Terraform are generated from the provider's own schema, and are the only form of it in the package indexes.
They have no sign of what is computed besides being optional, so that is left out, as are the objects ``metadata`` and ``resources``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

TYPES: dict[str, Any] = {
    "string": "string",
    "number": "number",
    "boolean": "bool",
    "stringList": ["list", "string"],
    "stringMap": ["map", "string"],
}
BLOCK = re.compile(
    r"(?m)^ +(\w+): \{\n +value: .*\n(?: +isBlock: .*\n)? +type: \"(\w+)\",\n +storageClassType: \"(\w+)\","
)
COMPUTED = re.compile(r"this\.getStringAttribute\('(id|manifest|status)'\)")


def required(declarations: str, interface: str) -> set[str]:
    """Return the attributes without which an interface's object is incomplete, in snake case."""
    found = re.search(rf"(?s)export interface {interface}\b.*?^}}", declarations, re.MULTILINE)
    assert found, interface
    names = re.findall(r"(?m)^    readonly (\w+):", found.group())
    return {re.sub("([A-Z])", r"_\1", each).lower() for each in names}


def attributes(source: str, declarations: str, body: str, interface: str) -> dict[str, Any]:
    """Return the attributes in a body of assignments, by name."""
    needed = required(declarations, interface)
    found: dict[str, Any] = {}
    for name, kind, storage in BLOCK.findall(body):
        entry: dict[str, Any] = {"required": name in needed}
        if storage in TYPES:
            entry["type"] = TYPES[storage]
        else:
            inner = storage.removesuffix("List") if kind == "list" else storage
            function = inner[0].lower() + inner[1:] + "ToHclTerraform"
            text = re.search(rf"(?s)^function {function}\(.*?^}}", source, re.MULTILINE)
            assert text, function
            entry |= {
                "nesting": "list" if kind == "list" else "single",
                "attributes": attributes(source, declarations, text.group(), inner),
            }
        found[name] = entry
    return found


def resource(package: Path, folder: str, construct: str, interface: str) -> dict[str, Any]:
    """Return the schema of one construct."""
    source = (package / "lib" / folder / "index.js").read_text()
    declarations = (package / "lib" / folder / "index.d.ts").read_text()
    body = re.search(r"(?s)synthesizeHclAttributes\(\) \{.*?^    \}", source, re.MULTILINE)
    assert body, construct
    found = attributes(source, declarations, body.group(), interface)
    # An argument of every provider, which Terraform itself handles.
    found.pop("alias", None)
    # Those of the construct itself; nested ones have classes of their own before it.
    for name in COMPUTED.findall(source[source.index(f"class {construct} ") :]):
        found.setdefault(name, {"computed": True, "type": "string"})
    return found


def main(package: Path) -> None:
    """Write the schema beside this file."""
    version = re.search(r"providerVersion: '([\d.]+)'", (package / "lib/release/index.js").read_text())
    assert version
    schema = {
        "provider_version": version.group(1),
        "provider": resource(package, "provider", "HelmProvider", "HelmProviderConfig"),
        "helm_release": resource(package, "release", "Release", "ReleaseConfig"),
    }
    Path(__file__).with_name("helm_schema.json").write_text(
        json.dumps(schema, indent=1, sort_keys=True) + "\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
