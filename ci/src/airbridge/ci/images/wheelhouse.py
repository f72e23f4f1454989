"""The wheels of one image: third-party ones by the lock's hashes, ours built from the exported commit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import BuildError
from airbridge.ci.images.specs import MACHINES, Architecture, Image

PIP = "pip==25.2"
# The C libraries that wheels for Debian 12 (glibc 2.36) may require, newest first.
_GLIBC = ("2_34", "2_31", "2_28", "2_27", "2_24", "2_17")
_LEGACY = ("2014", "2010", "1")


@dataclass(frozen=True)
class Target:
    """The interpreter that the wheels are for: `python` is "3.12.14"."""

    python: str
    architecture: Architecture

    @property
    def minor(self) -> str:
        """Python's version in two parts: "3.12"."""
        return ".".join(self.python.split(".")[:2])

    def pip_options(self) -> list[str]:
        """Return pip options that select wheels for this interpreter, whichever interpreter runs pip."""
        machine = MACHINES[self.architecture]
        tag = "cp" + self.minor.replace(".", "")
        platforms = [f"manylinux_{glibc}_{machine}" for glibc in _GLIBC]
        platforms += [f"manylinux{age}_{machine}" for age in _LEGACY if machine == "x86_64" or age == "2014"]
        abis = (tag, "abi3", "none")
        return [
            "--implementation", "cp", "--python-version", self.python,
            *(word for abi in abis for word in ("--abi", abi)),
            *(word for platform in platforms for word in ("--platform", platform)),
        ]  # fmt: skip


def fill(
    source: Checkout, image: Image, target: Target, context: Path, uv: Path, *, others: Iterable[Path] = ()
) -> None:
    """Write `wheels/`, `third-party.txt` and `own.txt` into the context. `others` are contexts whose wheels may be shared."""
    wheels = context / "wheels"
    wheels.mkdir(parents=True)
    locked = _locked(source, image, uv)
    (context / "third-party.txt").write_text(locked, encoding="utf-8")
    there = [wheel for other in others for wheel in sorted((other / "wheels").glob("*.whl"))]
    if missing := share(locked, there, wheels):
        (context / "missing.txt").write_text(missing, encoding="utf-8")
        _download(source, target, context / "missing.txt", wheels, uv)
        (context / "missing.txt").unlink()
    own = [_build(source, package, wheels, uv) for package in image.own_packages]
    (context / "own.txt").write_text("".join(own), encoding="utf-8")


def share(requirements: str, there: Iterable[Path], wheels: Path) -> str:
    """Link the wheels that requirements name by hash into `wheels`; return the requirements that none of them fulfils."""
    by_digest = {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel for wheel in there}
    missing = []
    for requirement in re.split(r"\n(?=\S)", requirements.strip()):
        found = by_digest.keys() & set(re.findall(r"--hash=sha256:([0-9a-f]{64})", requirement))
        for digest in found:
            (wheels / by_digest[digest].name).hardlink_to(by_digest[digest])
        if not found:
            missing.append(requirement)
    return "".join(f"{requirement}\n" for requirement in missing)


def left_out(source: Checkout, image: Image) -> list[str]:
    """Return the locked dependencies that an image does without. Raises BuildError if one is not in the lock."""
    if not source.has(image.contents):
        return []
    names = sorted(source.source(image.contents).toml.get("left-out", {}))
    locked = {str(package["name"]) for package in source.source("uv.lock").toml["package"]}
    if unknown := sorted(set(names) - locked):
        raise BuildError(f"{image.contents}: {', '.join(unknown)}: not in uv.lock; remove the entry")
    return names


def _locked(source: Checkout, image: Image, uv: Path) -> str:
    return source.run(
        uv, "export", "--quiet", "--frozen", "--no-header", "--no-annotate", "--no-emit-workspace",
        "--no-default-groups", "--package", image.package,
        *(word for name in left_out(source, image) for word in ("--no-emit-package", name)),
        cwd=source.root,
    )  # fmt: skip


def _download(source: Checkout, target: Target, requirements: Path, wheels: Path, uv: Path) -> None:
    source.run(
        uv, "tool", "run", "--quiet", "--from", PIP, "pip", "download", "--quiet", "--no-deps", "--require-hashes",
        "--only-binary", ":all:", *target.pip_options(), "--dest", wheels, "--requirement", requirements,
        cwd=source.root,
    )  # fmt: skip


def _build(source: Checkout, package: str, wheels: Path, uv: Path) -> str:
    """Build one of our wheels; returns its line of requirements."""
    source.run(uv, "build", "--quiet", "--wheel", "--package", package, "--out-dir", wheels, cwd=source.root)
    (wheels / ".gitignore").unlink(missing_ok=True)
    found = list(wheels.glob(f"{package.replace('-', '_')}-*.whl"))
    if len(found) != 1:
        raise BuildError(f"{package}: one wheel was expected, there are: {_names(found) or 'none'}")
    version = found[0].name.split("-")[1]
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    return f"{package}=={version} --hash=sha256:{digest}\n"


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(sorted(path.name for path in paths))
