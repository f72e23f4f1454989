"""Text that looks like a version, a digest, an account, a registry, an architecture or a base, wherever it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PRODUCTS = (
    "apache[ -]airflow|airflow|task[ -]sdk|airbridge|python|cpython|uv|node(?:\\.?js)?|terraform|postgres(?:ql)?|protocol|debian"
    "|ubuntu|cdktf|cdktn|localstack|cosign|buildah|podman|skopeo|ruff|mypy|pytest|npm|pip|moto|starlette|fastapi|sqlalchemy"
    "|pydantic|edge3|celery|checkov|zizmor|actionlint|hadolint|shellcheck"
)
_TEXTS = {
    "version": re.compile(
        r"(?<![\w.%/-])v?\d+\.\d+\.\d+(?:\.\d+)*(?:(?:[-+.~]?(?:a|b|rc|dev|post|alpha|beta|slim)\.?\d*)+|[-+~][\w.+~]+)?(?![\w])"
        r"|(?<=-)\d+\.\d+\.\d+(?![\w-])|@v\d+(?:\.\d+)*\b"
    ),
    "range": re.compile(
        r"(?<=[\w\]\"'`,])(?:===?|>=|<=|~=|!=)v?\d+(?:\.(?:\d+|\*))*|(?<=[\"',])[<>]\d+(?:\.\d+)*|[\"'](?:===?|>=|<=|~=|[<>]) \d+(?:\.\d+)+"
    ),
    "product": re.compile(rf"(?i)(?<![\w./-])(?:{_PRODUCTS})(?: version)?[-: =\"'v@`]{{1,4}}\d+(?:\.\d+)*\b"),
    "interpreter": re.compile(r"\bpy3\d{1,2}\b|\bpython3\.\d+\b"),
    "digest": re.compile(r"(?i)\bsha(?:1|256|384|512)[:=-][\w+/=-]{6,}|(?<![\w])[0-9a-f]{32,}(?![\w])"),
    "account": re.compile(r"(?<![\w.-])\d{12}(?!\d)|(?<=:)\d{12}(?=:)|(?<![\w])\d{12}(?=\.dkr)"),
    "registry": re.compile(
        r"\b(?:docker\.io|ghcr\.io|quay\.io|public\.ecr\.aws|mcr\.microsoft\.com|registry\.k8s\.io|gcr\.io|[\w.-]+\.pkg\.dev)\b"
        r"|\.dkr\.ecr\.|(?<=\w):latest\b"
    ),
    "architecture": re.compile(
        r"\b(?:amd64|arm64|aarch64|x86_64|armv7|i386|i686|ppc64le|s390x|ARM64|X86_64)\b"
    ),
    "base": re.compile(r"\b(?:bookworm|trixie|bullseye|buster|noble|jammy|alpine\d|slim-\w+)\b"),
}
#: What a line must have for an expression to be tried on it; without it ten times as much is read.
_HINTS = {
    "version": re.compile(r"\d\.\d+\.\d|@v\d"),
    "range": re.compile(r"[=<>]\s?v?\d"),
    "product": re.compile(r"[A-Za-z][-: =\"'v@`(]{1,4}\d"),
    "interpreter": re.compile(r"py\w*3"),
    "digest": re.compile(r"(?i)sha\d|[0-9a-f]{32}"),
    "account": re.compile(r"\d{12}"),
    "registry": re.compile(r"\.(?:io|aws|com|dev|ecr)\b|:latest"),
    "architecture": re.compile(r"(?i)amd64|arm64|aarch64|86|armv7|ppc64le|s390x"),
    "base": re.compile(r"bookworm|trixie|bullseye|buster|noble|jammy|alpine|slim-"),
}
_WITH_FACTS = re.compile(
    r"^.*(?:\d|[a-fA-F]{32}|:latest|\.(?:io|aws|com|dev|ecr)\b|bookworm|trixie|bullseye|buster|noble|jammy|slim-).*$",
    re.MULTILINE,
)
_ADDRESS = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_OCTET = 255


@dataclass(frozen=True)
class Candidate:
    """A piece of text: its kind, and where in the file it stands."""

    kind: str
    text: str
    start: int
    end: int


def find(text: str) -> Iterator[Candidate]:
    """All candidates in a file's text."""
    for line in _WITH_FACTS.finditer(text):
        for kind, expression in _TEXTS.items():
            if _HINTS[kind].search(line[0]):
                for found in expression.finditer(text, *line.span()):
                    pinned = text[found.start() - 1 : found.start()] == "="
                    if pinned or kind != "version" or not _address(found[0]):
                        yield Candidate(kind, found[0], found.start(), found.end())


def _address(text: str) -> bool:
    """Return whether it is an IPv4 address and not a version of four numbers."""
    return bool(_ADDRESS.fullmatch(text)) and all(int(octet) <= _OCTET for octet in text.split("."))
