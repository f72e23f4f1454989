"""Version parity: the compatibility matrix, applied to the versions of workers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final, Self

from airbridge.core import compatibility
from airbridge.core.compatibility import Compatible, Judgement, Matrix
from airbridge.core.protocol import SUPPORTED_VERSIONS, Versions

MAX_CACHED: Final = 256


@dataclass(frozen=True, slots=True)
class Parity:
    """Compatibility matrix, with the version of this control plane."""

    matrix: Matrix
    control_plane: str
    images: Collection[str] = ()
    _judged: dict[Versions | str, Judgement] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def load(cls, path: Path | None, images: Collection[str] = ()) -> Self:
        """Read the matrix for the installed control plane. Raises `ConfigurationError` naming the file.

        Without a file, workers must run the control plane's own versions. With `images`, digests of the worker
        image, a worker must run one of them.
        """
        own = version("airbridge-control-plane")
        return cls(compatibility.load(path) if path is not None else _same_versions(own), own, images)

    def judge(self, worker: Versions) -> Judgement:
        """Return the matrix's judgement of a worker with these versions."""
        judgement = self._judged.get(worker)
        if judgement is None:
            judgement = self.matrix.judge(self.control_plane, worker, self.images)
            self._keep(worker, judgement)
        return judgement

    def judge_json(self, worker: str) -> Judgement:
        """Return the judgement of a worker with the versions in this JSON."""
        judgement = self._judged.get(worker)
        if judgement is None:
            judgement = self.judge(Versions.model_validate_json(worker))
            self._keep(worker, judgement)
        return judgement

    def _keep(self, worker: Versions | str, judgement: Judgement) -> None:
        # Only accepted versions are cached: refused ones may be invented and without number.
        if judgement.may_claim and len(self._judged) < MAX_CACHED:
            self._judged[worker] = judgement


def _same_versions(own: str) -> Matrix:
    entry = Compatible(
        control_plane=f"=={own}",
        worker=f"=={own}",
        protocol=tuple(sorted(SUPPORTED_VERSIONS)),
        airflow=f"=={version('apache-airflow-core')}",
        task_sdk=f"=={version('apache-airflow-task-sdk')}",
        python=">=3.11,<3.13",
    )
    return Matrix.model_validate({"schema": 1, "compatible": (entry,)})
