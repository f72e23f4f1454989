"""XComs in a region's bucket: their references, the names of their objects, and files as XComs.

Airflow's database has a *reference* in place of such a value, in the Task SDK's encoding of classes: region and
object of the value, its size and its digest. The name of an object has its owner and the digest of its content, so that nothing
in a reference has to be believed: ``xcoms/dag=<DAG id>/run=<digest of the run id>/<work item>/<SHA-256 of the content>``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, Self
from urllib.parse import quote, unquote
from uuid import UUID

from airbridge.core.violations import Place, Violation

PREFIX: Final = "xcoms/"
#: Section of the options that the gateway delivers to workers, with `INLINE` and `PREVIEW` (bytes).
SECTION: Final = "airbridge_xcoms"
INLINE: Final = "inline_bytes"
PREVIEW: Final = "preview_bytes"
#: Class of the XCom backend of the tasks.
BACKEND: Final = "airbridge.edge_worker._airflow.xcom_backend.RegionalXCom"
#: Largest value: what S3 takes in one request.
MAX_BYTES: Final = 5 * 1024**3
#: Time for which a URL to an object is valid, in seconds. A transfer that has begun goes on.
URL_SECONDS: Final = 300
#: XCom by which an operator has Airflow's scheduler skip tasks: ids of tasks, which the scheduler must be able to read.
SKIP_KEY: Final = "skipmixin_key"

CLASSNAME: Final = "__classname__"
CLASS: Final = "airbridge.core.residency.xcoms.StoredXCom"
_PLACE: Final = Place("reference")
_NAME: Final = re.compile(r"xcoms/dag=([^/]+)/run=([0-9a-f]{32})/([0-9a-f-]{36})/([0-9a-f]{64})")
_FIELDS: Final = frozenset({"region", "object", "size", "sha256", "form", "preview"})
# S3's limit on a key.
_KEY_BYTES: Final = 1024


class Form(StrEnum):
    """What the object is: the value's JSON, or a file as it was."""

    JSON = "json"
    FILE = "file"


@dataclass(frozen=True)
class XComFile:
    """A file as an XCom: a task returns one with the path of what it has written, and another gets one with the path of a copy.

    The copy is in the reading task's working directory and is deleted with it.
    """

    path: Path

    def open(self) -> BinaryIO:
        """Open the file for reading, as bytes."""
        return self.path.open("rb")


@dataclass(frozen=True)
class ObjectName:
    """Name of an object: whose it is, and the digest of its content."""

    dag_id: str
    #: Digest of the run's id.
    run: str
    item_id: str
    sha256: str

    @classmethod
    def of(cls, dag_id: str, run_id: str, item_id: UUID | str, sha256: str) -> Self:
        """Return the name of an object of a task. Raises `Violation` if S3 would not take it."""
        name = cls(dag_id, run_digest(run_id), str(item_id), sha256)
        if len(name.key) > _KEY_BYTES or not _NAME.fullmatch(name.key):
            raise Violation(_PLACE, f"the object {name.key[:64]!r}", f"at most {_KEY_BYTES} characters")
        return name

    @classmethod
    def parse(cls, key: str) -> Self:
        """Return the name that a key is. Raises `Violation` for a key that `of` would not have made."""
        match = _NAME.fullmatch(key)
        if match is None:
            raise Violation(_PLACE, f"the object {key[:64]!r}", "the name of a stored XCom")
        name = cls(unquote(match[1]), match[2], match[3], match[4])
        if name.key != key:
            raise Violation(
                _PLACE, f"the object {key[:64]!r}", "the name of a stored XCom, in its one spelling"
            )
        return name

    @property
    def key(self) -> str:
        """The object's key."""
        return f"{PREFIX}dag={quote(self.dag_id, safe='')}/run={self.run}/{self.item_id}/{self.sha256}"

    def owned_by(self, dag_id: str, run_id: str, item_id: str) -> bool:
        """Return whether the object belongs to this work item."""
        return (self.dag_id, self.run, self.item_id) == (dag_id, run_digest(run_id), item_id)


@dataclass(frozen=True)
class StoredXCom:
    """Reference to a value in a region's bucket."""

    region: str
    object: ObjectName
    size: int
    form: Form
    preview: str = ""

    def encode(self) -> dict[str, Any]:
        """Return the reference as the Task SDK encodes classes."""
        data = {
            "region": self.region,
            "object": self.object.key,
            "size": self.size,
            "sha256": self.object.sha256,
            "form": str(self.form),
            "preview": self.preview,
        }
        return {CLASSNAME: CLASS, "__version__": 1, "__data__": data}

    @classmethod
    def decode(cls, value: Mapping[str, Any]) -> Self:
        """Return the reference that `encode` made. Raises `Violation` for anything else."""
        data = value.get("__data__")
        if value.get(CLASSNAME) != CLASS or value.get("__version__") != 1 or not isinstance(data, dict):
            raise Violation(_PLACE, "another class or version", f"{CLASS}, version 1")
        if data.keys() != _FIELDS:
            raise Violation(_PLACE, f"the keys {sorted(data)[:8]}", ", ".join(sorted(_FIELDS)))
        region, key, size, preview = data["region"], data["object"], data["size"], data["preview"]
        if not all(isinstance(each, str) for each in (region, key, preview)) or type(size) is not int:
            raise Violation(_PLACE, "a field of another type", "texts, and a whole number of bytes")
        name = ObjectName.parse(key)
        if data["sha256"] != name.sha256:
            raise Violation(_PLACE, "a digest that is not the object's", "that of the object's name")
        if not 0 <= size <= MAX_BYTES or data["form"] not in list(Form):
            raise Violation(
                _PLACE, f"{size} bytes of {data['form']!r}"[:64], f"up to {MAX_BYTES} of json or file"
            )
        return cls(region, name, size, Form(data["form"]), preview)


def is_reference(value: object) -> bool:
    """Return whether a value claims to be a reference."""
    return isinstance(value, dict) and value.get(CLASSNAME) == CLASS


def run_digest(run_id: str) -> str:
    """Return what stands for a run in the names of its objects."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:32]


def text_of(value: object) -> str:
    """Return the JSON text by whose length a value is measured, here and in the control plane. Raises `ValueError`."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def pieces(value: object) -> Iterator[bytes]:
    """Yield the text of `text_of` in pieces: of a list or a dict one for each member, so that the whole is never held."""
    if isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield (("," if index else "[") + text_of(each)).encode()
        yield b"]"
    elif isinstance(value, dict) and value:
        for index, (key, each) in enumerate(value.items()):
            yield (("," if index else "{") + f"{text_of(str(key))}:{text_of(each)}").encode()
        yield b"}"
    else:
        yield text_of(value).encode()
