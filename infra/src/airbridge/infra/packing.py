"""Files inside a task definition: each revision keeps those that it was made with, whatever is deployed after it.

A definition has 64 KiB, so they are compressed: forty regions of the catalogue, 22 KiB of text, are 1.4 KiB. The format is bzip2, which
ends with a checksum (a cut file is refused) and whose output no version of its library changes, as zlib's do: an unchanged file must
not look changed to Terraform.
"""

from __future__ import annotations

import base64
import bz2

from airbridge.infra.cdk import Token
from airbridge.infra.exceptions import InfraError

#: Of a task definition: "Task definition size limit" of the ECS service quotas (from memory; not reached).
DEFINITION_BYTES = 65_536

_UNPACK = "import base64, bz2, os, sys; sys.stdout.buffer.write(bz2.decompress(base64.b64decode(os.environ[sys.argv[1]])))"


def pack(text: str) -> str:
    """Return a text as `command` reads it from a variable.

    Raises:
        InfraError: the text holds a value that only Terraform knows, and that it would not find in here.
    """
    if Token.is_unresolved(text):
        line = next(line.strip() for line in text.splitlines() if Token.is_unresolved(line))
        raise InfraError(
            f"a file of a task definition has a value that is known after the deployment only: {line}"
        )
    return base64.b64encode(bz2.compress(text.encode())).decode()


def unpack(packed: str) -> str:
    """Return the text that was packed; ValueError if it is not whole."""
    return bz2.decompress(base64.b64decode(packed)).decode()


def variable(name: str) -> str:
    """Return the environment variable of a file."""
    return f"AIRBRIDGE_FILE_{name.upper().replace('.', '_').replace('-', '_')}"


def command(name: str, path: str) -> str:
    """Return the shell's command that writes a file to a path; it fails unless the file is whole."""
    return f"python -c '{_UNPACK}' {variable(name)} > {path}"
