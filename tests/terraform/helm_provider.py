"""Schema of Terraform's Helm provider, served over the plugin protocol, where the provider itself cannot be installed.

`terraform validate` and `terraform test` with `mock_provider` need nothing of a provider but its schema, and `terraform plan` an answer,
which is the configuration itself. The messages of the protocol (tfplugin6.proto) are few, so they are encoded here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # it comes without types, with OpenTelemetry's exporter

SCHEMA = Path(__file__).with_name("helm_schema.json")
SOURCE = "registry.terraform.io/hashicorp/helm"
NESTING = {"single": 1, "list": 2}
# Methods besides the schema's; an empty answer is "no diagnostics".
EMPTY = ("ValidateProviderConfig", "ValidateResourceConfig", "ConfigureProvider", "StopProvider")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: bytes | str | int) -> bytes:
    """Encode a field of a message: a number, or text, bytes or a message with its length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _attribute(name: str, given: Mapping[str, Any]) -> bytes:
    message = _field(1, name)
    if "type" in given:
        message += _field(2, json.dumps(given["type"]))
    else:
        inner = b"".join(_field(1, _attribute(*item)) for item in given["attributes"].items())
        message += _field(10, inner + _field(3, NESTING[given["nesting"]]))
    mode = 6 if given.get("computed") else 4 if given["required"] else 5
    return message + _field(mode, 1)


def _schema(attributes: Mapping[str, Any]) -> bytes:
    return _field(2, b"".join(_field(2, _attribute(*item)) for item in attributes.items()))


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Decode the fields of a message that have a length; the requests of a plan have no others before them."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number = varint() >> 3
        length = varint()
        yield number, message[at : at + length]
        at += length


def _plan(request: bytes, _context: grpc.ServicerContext) -> bytes:
    """Answer PlanResourceChange: planned_state is proposed_new_state, the third field of the request."""
    return _field(1, dict(_fields(request))[3])


def provider_schema() -> bytes:
    """Return the message GetProviderSchema.Response."""
    found = json.loads(SCHEMA.read_text())
    release = _field(1, "helm_release") + _field(2, _schema(found["helm_release"]))
    return _field(1, _schema(found["provider"])) + _field(2, release)


def _answer(response: bytes) -> grpc.RpcMethodHandler:
    def handle(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return response

    return _method(handle)


def _method(function: Callable[[bytes, grpc.ServicerContext], bytes]) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(function)


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """Serve the schema on a socket in `folder`; yield the variables by which Terraform finds it."""
    server = grpc.server(ThreadPoolExecutor(4))
    handlers = {"GetProviderSchema": _answer(provider_schema()), **{name: _answer(b"") for name in EMPTY}}
    handlers["PlanResourceChange"] = _method(_plan)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tfplugin6.Provider", handlers),))
    socket = folder / "helm.sock"
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    attached = {
        "Protocol": "grpc",
        "ProtocolVersion": 6,
        "Pid": os.getpid(),
        "Test": True,
        "Addr": {"Network": "unix", "String": str(socket)},
    }
    try:
        yield {"TF_REATTACH_PROVIDERS": json.dumps({SOURCE: attached})}
    finally:
        server.stop(None)
