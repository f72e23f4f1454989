"""The worker's identity: enrolled once, renewed at half its lifetime, kept in memory only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from airbridge.core.backoff import Backoff
from airbridge.core.protocol import Credentials, EnrolRequest, RenewRequest, TrustBundle, Versions
from airbridge.edge_worker.exceptions import GatewayError, IdentityError
from airbridge.edge_worker.gateway_client import tls
from airbridge.edge_worker.gateway_client.client import Gateway
from airbridge.edge_worker.gateway_client.join import Join
from airbridge.edge_worker.gateway_client.rejoin_key import RejoinKey
from airbridge.edge_worker.gateway_client.retry import RetryDecision, judge, retry_after
from airbridge.edge_worker.work.bounded_wait import within

log = structlog.get_logger(__name__)

# An identity with less than this left is replaced by enrolling, in case renewal keeps failing.
RENEW_PATIENCE = timedelta(minutes=2)

# Seconds between two checks of the time left: timers stand still while a machine is suspended.
RECHECK_SECONDS = 60.0


class Identity:
    """Identity of this worker. `changed` gets every new set of credentials."""

    def __init__(
        self,
        *,
        region: str,
        pool: str,
        name: str,
        gateway: Gateway,
        join: Join,
        rejoin_key: RejoinKey,
        versions: Versions,
        backoff: Callable[[], Backoff],
        changed: Callable[[Credentials], None],
    ) -> None:
        self._region = region
        self._pool = pool
        self._name = name
        self._gateway = gateway
        self._join = join
        self._rejoin_key = rejoin_key
        self._versions = versions
        self._backoff = backoff
        self._changed = changed
        self._credentials: Credentials | None = None
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._renew_now = asyncio.Event()

    @property
    def credentials(self) -> Credentials:
        """The current credentials. Raises `IdentityError` before the first enrolment."""
        if self._credentials is None:
            raise IdentityError("this worker is not enrolled yet")
        return self._credentials

    @property
    def trust_version(self) -> str:
        """The version of the trust bundle in use, or ""."""
        return "" if self._credentials is None else self._credentials.trust.version

    async def enrol(self) -> None:
        """Enrol now, once. Raises `GatewayError` or `IdentityError`."""
        key = tls.new_key()
        csr = tls.certificate_request(key, self._name)
        request = EnrolRequest(
            region=self._region,
            pool=self._pool,
            worker=self._name,
            csr_pem=csr,
            join=await self._join.proof(csr),
            rejoin=await asyncio.to_thread(self._rejoin_key.prove, self._region, self._pool, self._name, csr),
            versions=self._versions,
        )
        credentials = await self._gateway.enrol(request)
        # Before the identity is used: a join that was not noted would be repeated as the same one.
        await self._join.accepted()
        self._adopt(credentials, key)
        log.info("identity.enrolled", worker=self.credentials.worker_id, region=self._region, pool=self._pool)

    async def enrol_persistently(self) -> None:
        """Enrol, however long the gateway is unreachable. Raises the `GatewayError` of a final refusal."""
        backoff = self._backoff()
        while True:
            try:
                await self.enrol()
                return
            except GatewayError as error:
                if judge(error) is not RetryDecision.RETRY:
                    raise
                pause = backoff.failed(retry_after(error))
                log.warning("identity.enrol_failed", detail=str(error), retry_seconds=round(pause, 2))
            await asyncio.sleep(pause)

    def renew_soon(self) -> None:
        """Renew now rather than at half-life: by command of the control plane, or because a request was not authenticated."""
        self._renew_now.set()

    def trust(self, trust: TrustBundle) -> None:
        """Trust these CA certificates and keys from now on."""
        if self._key is None:
            return
        self._adopt(self.credentials.model_copy(update={"trust": trust}), self._key)
        log.info("identity.trust_changed", version=trust.version)

    async def keep_renewed(self) -> None:
        """Renew at half-life, for ever. Raises if this worker is refused an identity for good."""
        backoff = self._backoff()
        while True:
            await self._wait_until_due()
            try:
                await self._renew()
                backoff.succeeded()
            except (GatewayError, IdentityError) as error:
                if judge(error) is RetryDecision.REVOKED:
                    raise
                pause = backoff.failed(retry_after(error))
                log.warning("identity.renewal_failed", detail=str(error), retry_seconds=round(pause, 2))
                await asyncio.sleep(pause)
                # The failed renewal is due still: `_wait_until_due` must not wait for the half-life again.
                self._renew_now.set()

    async def _wait_until_due(self) -> None:
        # By the gateway's clock: this host's may be wrong by more than a certificate lives.
        while not self._renew_now.is_set():
            left = (self.credentials.renew_after - self._gateway.server_now()).total_seconds()
            if left <= 0:
                return
            await within(min(left, RECHECK_SECONDS), self._renew_now.wait())
        self._renew_now.clear()

    async def _renew(self) -> None:
        if self._lapsed() or self._gateway.enrolling:
            await self.enrol()
            return
        key = tls.new_key()
        csr = tls.certificate_request(key, self._name)
        try:
            answer = await self._gateway.renew(RenewRequest(csr_pem=csr, versions=self._versions))
        except GatewayError as error:
            if judge(error) not in {RetryDecision.REENROL, RetryDecision.GIVE_UP}:
                raise
            log.warning("identity.renewal_refused", detail=str(error))
            await self.enrol()
            return
        self._adopt(answer, key)
        log.info("identity.renewed", expires_at=answer.expires_at.isoformat())

    def _lapsed(self) -> bool:
        return self._gateway.server_now() + RENEW_PATIENCE >= self.credentials.expires_at

    def _adopt(self, credentials: Credentials, key: ec.EllipticCurvePrivateKey) -> None:
        given = (credentials.settings.region, credentials.settings.pool)
        if given != (self._region, self._pool):
            raise IdentityError(f"the gateway gave an identity for {given}, not {(self._region, self._pool)}")
        context = tls.mutual_context(credentials.trust.ca_pem, credentials.certificate_pem, key)
        self._gateway.identify(context, credentials.access_token)
        self._credentials, self._key = credentials, key
        self._changed(credentials)
