"""Thread pools of the gateway, one for each kind of request."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Self

from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.control_plane.identity.iam import STS_AT_ONCE

HEARTBEAT_THREADS: Final = 2
ENROLMENT_THREADS: Final = 2
OPERATOR_THREADS: Final = 2
# So many pushed folders are checked at once.
PUBLISHING_THREADS: Final = 2
BUILD_THREADS: Final = 2
SIGN_IN_THREADS: Final = 1
PARSING_THREADS: Final = 2
BROKERING_THREADS: Final = 2
TRANSFER_CHECK_THREADS: Final = 2
TRANSFER_THREADS: Final = 8
# As many workers may poll at once; a check takes a millisecond.
WAITING_TRANSFERS: Final = 4_096
WAITING_PER_THREAD: Final = 32
# A heartbeat that is shed comes again, and leaves the gateway less time for the others.
HEARTBEAT_RETRY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class ThreadPools:
    """Thread pools of the gateway. Each kind of request has its own, so that none can starve another."""

    claims: ThreadPool
    #: Exchanges, releases and renewals.
    work: ThreadPool
    batches: ThreadPool
    heartbeats: ThreadPool
    #: Of callers without a certificate; renewals are work.
    enrolments: ThreadPool
    joins: ThreadPool
    operators: ThreadPool
    operator_tokens: ThreadPool
    #: Of operators, what takes minutes or waits for buckets: pushes of code and environments, and reads of anchors.
    publishing: ThreadPool
    #: Builds of the packages that pushes bring. A slow package index delays only such pushes.
    builds: ThreadPool
    #: Of monitoring: metrics are read from the database, which may take its time.
    scrapes: ThreadPool
    #: Of anonymous callers, operators without a session among them.
    sign_ins: ThreadPool
    parsing: ThreadPool
    health: ThreadPool
    #: Of workers that reach nothing but the gateway: their checks in the database, and calls of SQS and S3.
    transfer_checks: ThreadPool
    transfers: ThreadPool
    #: Of workers whose AWS credentials are brokered: calls of STS.
    brokering: ThreadPool

    @classmethod
    def of(cls, work_threads: int, connections: int) -> Self:
        """Return the pools, with so many threads for work, and half as many for claims.

        As many heartbeats may wait as there may be `connections`: none of a worker that is connected is shed.
        """
        return cls(
            claims=_pool("claims", max(1, work_threads // 2)),
            work=_pool("work", work_threads),
            # One thread: a second batch would wait for the first one's rows.
            batches=ThreadPool("heartbeat-batches", threads=1, requests=connections),
            heartbeats=ThreadPool(
                "heartbeats",
                threads=HEARTBEAT_THREADS,
                requests=connections,
                retry_after=HEARTBEAT_RETRY_SECONDS,
            ),
            enrolments=_pool("enrolments", ENROLMENT_THREADS),
            joins=_pool("joins", STS_AT_ONCE),
            operators=_pool("operators", OPERATOR_THREADS),
            operator_tokens=_pool("operator-tokens", 1),
            publishing=_pool("publishing", PUBLISHING_THREADS),
            builds=_pool("builds", BUILD_THREADS),
            scrapes=_pool("scrapes", 1),
            sign_ins=_pool("sign-ins", SIGN_IN_THREADS),
            parsing=_pool("parsing", PARSING_THREADS),
            # One check at a time for each listener, see `Readiness`.
            health=ThreadPool("health", threads=1, requests=2),
            transfer_checks=ThreadPool(
                "transfer-checks", threads=TRANSFER_CHECK_THREADS, requests=WAITING_TRANSFERS
            ),
            transfers=ThreadPool("transfers", threads=TRANSFER_THREADS, requests=WAITING_TRANSFERS),
            # A whole site that comes back from a cut waits here, rather than being refused.
            brokering=ThreadPool("brokering", threads=BROKERING_THREADS, requests=WAITING_TRANSFERS),
        )

    @property
    def database_connections(self) -> int:
        """Most database connections that the pools' threads use at once. Parsing, verifying joins and building need none."""
        pools = (
            self.claims,
            self.work,
            self.batches,
            self.heartbeats,
            self.enrolments,
            self.operators,
            self.operator_tokens,
            self.publishing,
            self.scrapes,
        )
        return sum(
            pool.threads
            for pool in (*pools, self.sign_ins, self.health, self.transfer_checks, self.brokering)
        )

    def close(self) -> None:
        """Shut all of them down."""
        for each in fields(self):
            getattr(self, each.name).close()


def _pool(name: str, threads: int) -> ThreadPool:
    return ThreadPool(name, threads=threads, requests=threads * WAITING_PER_THREAD)
