"""A package index in a directory: tiny wheels, made by the test that needs them."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from airbridge.executor.bundle_settings import PackageSettings

_WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"


@dataclass(frozen=True)
class Index:
    """Directory of wheels that environments are built from, without any network."""

    folder: Path

    @property
    def settings(self) -> PackageSettings:
        """Settings of a deployment that has only this index."""
        return PackageSettings(index="none", find_links=str(self.folder), seconds=180.0)

    def add(
        self,
        name: str,
        version: str,
        *,
        requires: Iterable[str] = (),
        files: Mapping[str, str] | None = None,
        tag: str = "py3-none-any",
    ) -> str:
        """Add a wheel whose module has its version; return its hash."""
        self.folder.mkdir(parents=True, exist_ok=True)
        info = f"{name}-{version}.dist-info"
        metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        metadata += [f"Requires-Dist: {each}" for each in requires]
        content = {
            f"{name}/__init__.py": f'VERSION = "{version}"\n',
            **(files or {}),
            f"{info}/METADATA": "\n".join(metadata) + "\n",
            f"{info}/WHEEL": _WHEEL.format(tag=tag),
        }
        wheel = self.folder / f"{name}-{version}-{tag}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in {**content, f"{info}/RECORD": _record(content, info)}.items():
                # With one time: equal wheels have equal hashes.
                archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), text)
        return f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def _record(content: Mapping[str, str], info: str) -> str:
    lines = [f"{path},sha256={_urlsafe(text)},{len(text.encode())}" for path, text in content.items()]
    return "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"


def _urlsafe(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
