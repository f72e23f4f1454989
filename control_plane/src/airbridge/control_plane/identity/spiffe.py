"""SPIFFE names of workers: ``spiffe://<trust-domain>/region/<region>/pool/<pool>/worker/<id>``.

https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from airbridge.control_plane.exceptions import InvalidIdentity

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_URI = re.compile(
    rf"spiffe://(?P<domain>[a-z0-9._-]{{1,255}})/region/(?P<region>{_LABEL})/pool/(?P<pool>{_LABEL})/worker/(?P<worker>{_LABEL})"
)


@dataclass(frozen=True, slots=True)
class WorkerName:
    """Name of a worker in its pool, region and trust domain."""

    trust_domain: str
    region: str
    pool: str
    worker: str

    @property
    def uri(self) -> str:
        """SPIFFE URI, as in the certificate."""
        return f"spiffe://{self.trust_domain}/region/{self.region}/pool/{self.pool}/worker/{self.worker}"

    @property
    def queue(self) -> str:
        """``<region>/<pool>``: the queue whose work this worker may claim, as scopes name it."""
        return f"{self.region}/{self.pool}"

    @classmethod
    def parse(cls, uri: str, trust_domain: str) -> Self:
        """Parse a SPIFFE URI. Raises `InvalidIdentity` if it is not a worker of `trust_domain`."""
        match = _URI.fullmatch(uri)
        if match is None:
            raise InvalidIdentity(
                f"{uri[:200]!r} is not a worker; expected spiffe://{trust_domain}/region/<region>/pool/<pool>/worker/<id>"
            )
        if match["domain"] != trust_domain:
            raise InvalidIdentity(f"{uri!r} is of another trust domain; this one is {trust_domain!r}")
        return cls(match["domain"], match["region"], match["pool"], match["worker"])
