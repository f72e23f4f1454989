"""Residency of one pool: the catalogue's settings of one pool, and the options by which its workers know them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from airbridge.core.catalogue import Catalogue
from airbridge.core.regions import Pool, Region, Residency
from airbridge.core.residency import xcoms

#: Section of the options that the gateway delivers to the workers of a strict region.
SECTION: Final = "airbridge_residency"
SECRETS: Final = "airbridge_secrets"
#: In place of what a strict region keeps.
WITHHELD: Final = "withheld: the region's residency is strict"


@dataclass(frozen=True)
class Kept:
    """Data that workers of a pool keep in their region. `inline_bytes` is None if XComs are not stored there."""

    strict: bool = False
    inline_bytes: int | None = None
    preview_bytes: int = 0
    secrets_backend: str | None = None


def kept(region: Region, pool: Pool) -> Kept:
    """Return what a pool keeps."""
    strict = region.residency is Residency.STRICT
    inline = region.xcom_inline_bytes if pool.xcom_inline_bytes is None else pool.xcom_inline_bytes
    return Kept(strict, 0 if strict else inline, region.xcom_preview_bytes, pool.secrets_backend)


def task_options(catalogue: Catalogue, region: Region, pool: Pool) -> dict[str, dict[str, str]]:
    """Return the options of a pool's tasks.

    Tasks of every region can read references, as soon as one region stores XComs.
    """
    places = [kept(*place) for place in catalogue.places()]
    mine, options = kept(region, pool), dict[str, dict[str, str]]()
    if any(each.inline_bytes is not None for each in places):
        options["core"] = {"xcom_backend": xcoms.BACKEND}
    if mine.inline_bytes is not None:
        options[xcoms.SECTION] = {
            xcoms.INLINE: str(mine.inline_bytes),
            xcoms.PREVIEW: str(mine.preview_bytes),
        }
    if mine.strict:
        options[SECTION] = {"mode": str(Residency.STRICT)}
    if pool.secrets_backend is not None:
        options[SECRETS] = {
            "backend": pool.secrets_backend,
            "backend_kwargs": json.dumps(pool.secrets_backend_kwargs, sort_keys=True),
        }
    return options
