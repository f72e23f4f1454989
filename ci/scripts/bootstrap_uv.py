"""Install a pinned uv into a folder, with nothing but the standard library and pip: ``bootstrap_uv.py FOLDER VERSION``.

Works where the interpreter was installed without ``ensurepip`` too, as long as some pip is there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    folder, version = Path(sys.argv[1]), sys.argv[2]
    if sys.version_info[:2] not in {(3, 11), (3, 12)}:
        found = ".".join(map(str, sys.version_info[:2]))
        print(
            f"AirBridge needs Python 3.11 or 3.12, but {sys.executable} is {found}; set PYTHON=…",
            file=sys.stderr,
        )
        return 2
    requirement = f"uv=={version}"
    if (
        subprocess.run(
            [sys.executable, "-m", "venv", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    ):
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement]
        return subprocess.run(pip, check=False).returncode
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "lib"), requirement]
    if (code := subprocess.run(pip, check=False).returncode) == 0:
        binary = folder / "bin" / "uv"
        binary.parent.mkdir(parents=True, exist_ok=True)
        binary.unlink(missing_ok=True)
        binary.symlink_to((folder / "lib" / "bin" / "uv").resolve())
    return code


if __name__ == "__main__":
    sys.exit(main())
