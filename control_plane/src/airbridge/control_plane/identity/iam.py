"""Join by AWS role: an STS GetCallerIdentity request, signed on the worker and forwarded by the gateway.

AWS names the signer. The gateway checks before forwarding that the request is GetCallerIdentity, for the STS of the
worker's region, signed recently, for this gateway (``X-AirBridge-Audience``) and for the key of the certificate request
(``X-AirBridge-Csr-Sha256``), both among the signed headers; and afterwards that the role is the pool's. A request can be
used once.

After HashiCorp Vault's and Teleport's methods of the same name.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

import httpx
import structlog

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.core.catalogue import Catalogue
from airbridge.core.protocol import EnrolRequest, JoinByAwsIam, RefusalReason
from airbridge.core.regions import Region

log = structlog.get_logger()

AUDIENCE_HEADER: Final = "x-airbridge-audience"
CSR_HEADER: Final = "x-airbridge-csr-sha256"
BODY: Final = "Action=GetCallerIdentity&Version=2011-06-15"
OLDEST: Final = timedelta(minutes=5)
# Tolerance for a worker's clock that is ahead of this host's.
YOUNGEST: Final = timedelta(minutes=1)
# Used requests are remembered for longer than they could be valid.
REMEMBERED: Final = OLDEST + YOUNGEST + timedelta(minutes=5)
STS_SECONDS: Final = 5.0
STS_AT_ONCE: Final = 4
LARGEST_ANSWER: Final = 65_536

_MUST_BE_SIGNED: Final = frozenset({"host", "x-amz-date", AUDIENCE_HEADER, CSR_HEADER})
_MAY_BE_SENT: Final = _MUST_BE_SIGNED | {
    "authorization",
    "content-type",
    "x-amz-security-token",
    "x-amz-content-sha256",
    "content-length",
}
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[A-Za-z0-9_]{4,128})/(?P<day>\d{8})/(?P<region>[a-z0-9-]+)/sts/aws4_request, ?"
    r"SignedHeaders=(?P<headers>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)
_ARN: Final = re.compile(r"<Arn>([^<>&\s]{1,2048})</Arn>")
_ASSUMED: Final = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):sts::(?P<account>\d{12}):assumed-role/(?P<role>[^/]+)/(?P<session>[^/]+)"
)
_ROLE: Final = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):iam::(?P<account>\d{12}):role/(?:.*/)?(?P<role>[^/]+)"
)

# Session name of an EC2 instance profile's role: AWS sets it, the host cannot.
_INSTANCE: Final = re.compile(r"i-[0-9a-f]+")

Post = Callable[[str, Mapping[str, str], str], "StsAnswer"]


@dataclass(frozen=True, slots=True)
class StsAnswer:
    """Response of STS."""

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Proven:
    """Signer of the request, confirmed by AWS."""

    role_arn: str
    #: Name of the role session: on EC2 the instance id.
    session: str
    #: SHA-256 of the signature, remembered so that the request can be used once.
    digest: str


@dataclass(frozen=True, slots=True)
class _Signed:
    headers: Mapping[str, str]
    at: datetime
    signature: str


class AwsIam:
    """Verifies signed requests. `check` calls STS, so it must run outside of a transaction."""

    def __init__(
        self,
        catalogue: Catalogue,
        audiences: Iterable[str],
        clock: Callable[[], datetime],
        post: Post | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._audiences = frozenset(audiences)
        self._clock = clock
        self._post = post or post_to_sts
        self._sts_calls = threading.BoundedSemaphore(STS_AT_ONCE)

    def check(self, request: EnrolRequest, join: JoinByAwsIam) -> Proven:
        """Return the signer of `join`. Raises `Refused` naming the fault, or `Unavailable`."""
        region = self._catalogue.region(request.region)
        pool = region.pool(request.pool) if region else None
        if region is None or pool is None or pool.role_arn is None:
            raise _refuse(
                f"join method aws_iam is not enabled for pool {request.pool}@{request.region}: "
                "the region catalogue gives it no role_arn; use a join token"
            )
        if region.credentials_of(pool) == "brokered":
            # The gateway hands out credentials of this role: they are no proof of a host.
            raise _refuse(
                f"join method aws_iam is not enabled for pool {request.pool}@{request.region}: its credentials are brokered; use "
                "another join method"
            )
        url = sts_url(region, pool.role_arn)
        signed = self._read(request, join, region, url)
        arn = self._call_sts(url, signed, join.body)
        assumed = _ASSUMED.fullmatch(arn)
        wanted = _ROLE.fullmatch(pool.role_arn)
        names = ("partition", "account", "role")
        if assumed is None or wanted is None or any(assumed[name] != wanted[name] for name in names):
            raise _refuse(f"{arn} is not the role of pool {request.pool}@{request.region}")
        return Proven(
            pool.role_arn, assumed["session"], hashlib.sha256(signed.signature.encode()).hexdigest()
        )

    def _read(self, request: EnrolRequest, join: JoinByAwsIam, region: Region, url: str) -> _Signed:
        if join.url != url:
            raise _refuse(
                f"the signed request is for {join.url[:200]!r}; for region {region.name} it must be {url!r}"
            )
        if join.body != BODY:
            raise _refuse("the signed request is not GetCallerIdentity")
        headers = {name.lower(): value for name, value in join.headers.items()}
        if len(headers) != len(join.headers) or not headers.keys() <= _MAY_BE_SENT:
            unexpected = sorted(headers.keys() - _MAY_BE_SENT) or ["one given twice"]
            raise _refuse(
                f"the signed request has headers that it must not have: {', '.join(unexpected)[:200]}"
            )
        authorization = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
        if authorization is None:
            raise _refuse("the request has no AWS Signature Version 4 for STS")
        missing = _MUST_BE_SIGNED - set(authorization["headers"].split(";")) | (
            _MUST_BE_SIGNED - headers.keys()
        )
        if missing:
            raise _refuse(f"these headers of the request must be signed: {', '.join(sorted(missing))}")
        if authorization["region"] != region.aws:
            raise _refuse(f"the request is signed for region {authorization['region']}, not {region.aws}")
        if headers["host"] != urlsplit(url).netloc:
            raise _refuse(
                f"the request is signed for host {headers['host'][:200]!r}, not {urlsplit(url).netloc!r}"
            )
        if headers[AUDIENCE_HEADER] not in self._audiences:
            raise _refuse(
                f"the request is signed for gateway {headers[AUDIENCE_HEADER][:200]!r}, which is not this one"
            )
        if headers[CSR_HEADER] != hashlib.sha256(request.csr_pem.encode()).hexdigest():
            raise _refuse("the request is signed for another key than that of the certificate request")
        return _Signed(headers, self._fresh(headers["x-amz-date"]), authorization["signature"])

    def _fresh(self, text: str) -> datetime:
        try:
            at = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError as error:
            raise _refuse("X-Amz-Date must read like 20260131T235959Z") from error
        age = self._clock() - at
        if not -YOUNGEST <= age <= OLDEST:
            raise _refuse(
                f"the request was signed {age.total_seconds():.0f} s ago by this gateway's clock; "
                f"it must be at most {OLDEST.total_seconds():.0f} s old"
            )
        return at

    def _call_sts(self, url: str, signed: _Signed, body: str) -> str:
        if not self._sts_calls.acquire(timeout=STS_SECONDS):
            raise Unavailable("too many workers join at once", retry_after=2.0)
        try:
            answer = self._post(url, signed.headers, body)
        finally:
            self._sts_calls.release()
        if answer.status >= 500:
            raise Unavailable(f"STS answered {answer.status}", retry_after=2.0)
        found = _ARN.findall(answer.text)
        if answer.status != 200 or len(found) != 1:
            log.info("join.sts_refused", status=answer.status, answer=answer.text[:500])
            raise _refuse(f"STS does not accept the request (status {answer.status})")
        return str(found[0])


def may_be_called(session: str, worker: str) -> bool:
    """Return whether the holder of a role session may enrol under this name: an EC2 instance only under its own id."""
    if not _INSTANCE.fullmatch(session):
        return True
    return worker == session or worker.endswith(f"-{session}")


def sts_url(region: Region, role_arn: str) -> str:
    """Return the STS URL that workers of this region must sign for."""
    if region.endpoint_url is not None:
        return f"{region.endpoint_url.rstrip('/')}/"
    suffix = "amazonaws.com.cn" if role_arn.startswith("arn:aws-cn:") else "amazonaws.com"
    return f"https://sts.{region.aws}.{suffix}/"


def post_to_sts(url: str, headers: Mapping[str, str], body: str) -> StsAnswer:
    """Send the request as it was signed. Raises `Unavailable` if STS cannot be reached."""
    sent = {name: value for name, value in headers.items() if name != "content-length"}
    try:
        with (
            httpx.Client(timeout=STS_SECONDS, follow_redirects=False, trust_env=False) as client,
            client.stream("POST", url, headers=sent, content=body.encode()) as answer,
        ):
            return StsAnswer(answer.status_code, _bounded(answer))
    except httpx.HTTPError as error:
        raise Unavailable(f"STS cannot be reached: {type(error).__name__}", retry_after=2.0) from error


def _bounded(answer: httpx.Response) -> str:
    content = b""
    for part in answer.iter_bytes():
        content += part
        if len(content) > LARGEST_ANSWER:
            return ""
    return content.decode(errors="replace")


def _refuse(detail: str) -> Refused:
    return Refused(403, RefusalReason.FORBIDDEN, detail, rule="join method aws_iam")
