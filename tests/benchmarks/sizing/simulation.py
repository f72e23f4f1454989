"""Discrete-event simulation of gateways and their Postgres under heartbeats, claims and exchanges.

A gateway is a core that its threads share in turns, as CPython's threads share the interpreter: the event loop, which reads and answers
every request one after another; one thread for batches of heartbeats; threads for claims; and threads for exchanges. What a thread does is a number
of round trips to Postgres with a piece of work before each. Postgres is a number of cores over one queue of statements.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

QUANTUM: Final = 0.001
"""Seconds after which a thread gives up the interpreter to another one: the gateway's switch interval."""
MOST_IN_A_BATCH: Final = 200
"""Heartbeats: `MAX_BATCH` of the gateway's batcher."""
_NOTHING: Final = 1e-12


@dataclass(frozen=True)
class Service:
    """Cost of one request of a kind, in CPU seconds."""

    loop: float
    """Of the gateway's event loop: half of it before the thread, half after it."""
    thread: float
    """Of the gateway's thread."""
    database: float
    """Of Postgres."""
    round_trips: int
    """Statements, with the start and the end of the transaction."""


@dataclass(frozen=True)
class Batch:
    """Cost of a batch of heartbeats, and of each heartbeat in it, in CPU seconds."""

    fixed: Service
    """The loop's share is of the batch as well: it is spent before the thread."""
    each: Service


@dataclass(frozen=True)
class Platform:
    """Gateways and Postgres."""

    gateways: int
    heartbeat: Batch
    claim: Service
    exchange: Service
    claim_threads: int
    work_threads: int
    postgres_cores: int
    spacing: float
    """Seconds from the start of a batch to that of the next, at least."""
    gateway_rest: float = 0.0
    """Share of a gateway's core that it needs at rest."""
    postgres_others: float = 0.0
    """Share of Postgres's cores that is always taken by anything else."""
    round_trip: float = 0.0
    """Seconds from gateway to Postgres and back, without work."""
    commit: float = 0.0
    """Seconds that a commit waits for the disk; other transactions go on meanwhile."""


@dataclass(frozen=True)
class Demand:
    """Requests a second of all gateways together."""

    heartbeats: float
    claims: float
    exchange_follows: bool = False
    """Whether a task's exchange is made once its claim is answered; otherwise as many come at times of their own."""
    beside: float = 0.0
    """CPU seconds of a task that others need of Postgres's cores: while it is placed, for example."""
    claims_within: float | None = None
    """Seconds at the start in which all claims of the whole time come, at random; None: they come all the time."""


@dataclass
class Outcome:
    """Seconds from when each request was due to its answer, by kind, and busy shares."""

    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"heartbeat": [], "claim": [], "exchange": []}
    )
    arrived: dict[str, int] = field(default_factory=lambda: {"heartbeat": 0, "claim": 0, "exchange": 0})
    answered: dict[str, int] = field(default_factory=lambda: {"heartbeat": 0, "claim": 0, "exchange": 0})
    unanswered: int = 0
    """Requests that were under way when the time was over."""
    batches: int = 0
    gateway_busy: float = 0.0
    """Share of the gateways' cores."""
    postgres_busy: float = 0.0
    """Share of Postgres's cores, without what is always taken."""


class _Clock:
    """Events in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, event))

    def run(self, until: float) -> None:
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, event = heapq.heappop(events)
            event()
        self.now = until


class _Thread:
    """Thread with the work that waits for it: seconds of CPU, and what follows."""

    def __init__(self) -> None:
        self.work: deque[tuple[float, Callable[[], None]]] = deque()
        self.left = 0.0
        """Of the work at hand."""
        self.turn = 0.0
        """Left of its turn on the core."""
        self.waits = False
        """Whether it waits for the core, or has it."""


class _Core:
    """Core that threads have in turns of `QUANTUM`; one that has nothing more to do gives it up at once."""

    def __init__(self, clock: _Clock, share: float) -> None:
        self._clock = clock
        self._share = share
        self._waiting: deque[_Thread] = deque()
        self._taken = False
        self.busy = 0.0

    def do(self, thread: _Thread, seconds: float, then: Callable[[], None]) -> None:
        """Have a thread work for so many seconds of CPU after what it has to do already."""
        thread.work.append((seconds / self._share, then))
        if not thread.waits:
            thread.waits = True
            thread.left = thread.work[0][0]
            self._waiting.append(thread)
            if not self._taken:
                self._next()

    def _next(self) -> None:
        if not self._waiting:
            self._taken = False
            return
        self._taken = True
        thread = self._waiting.popleft()
        thread.turn = QUANTUM
        self._run(thread)

    def _run(self, thread: _Thread) -> None:
        seconds = min(thread.left, thread.turn)
        self._clock.after(seconds, partial(self._ran, thread, seconds))

    def _ran(self, thread: _Thread, seconds: float) -> None:
        self.busy += seconds
        thread.left -= seconds
        thread.turn -= seconds
        if thread.left <= _NOTHING:
            _, then = thread.work.popleft()
            if not thread.work:
                thread.waits = False
                then()
                self._next()
                return
            thread.left = thread.work[0][0]
            then()
        if thread.turn <= _NOTHING:
            self._waiting.append(thread)
            self._next()
        else:
            self._run(thread)


class _Postgres:
    """Cores over one queue of statements."""

    def __init__(self, clock: _Clock, platform: Platform) -> None:
        self._clock = clock
        self._free = platform.postgres_cores
        self._share = 1.0 - platform.postgres_others
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self.busy = 0.0

    def do(self, seconds: float, then: Callable[[], None]) -> None:
        """Run a statement of so many seconds of CPU."""
        self._queue.append((seconds / self._share, then))
        if self._free:
            self._free -= 1
            self._next()

    def _next(self) -> None:
        if self._queue:
            seconds, then = self._queue.popleft()
            self._clock.after(seconds, partial(self._done, seconds, then))
        else:
            self._free += 1

    def _done(self, seconds: float, then: Callable[[], None]) -> None:
        self.busy += seconds * self._share
        self._next()
        then()


class _Pool:
    """Threads of one kind of request, and the requests that wait for one."""

    def __init__(self, gateway: _Gateway, threads: int) -> None:
        self._gateway = gateway
        self._free = [_Thread() for _ in range(threads)]
        self._queue: deque[tuple[Service, Callable[[], None]]] = deque()

    def do(self, service: Service, then: Callable[[], None]) -> None:
        """Run a transaction in the next free thread."""
        self._queue.append((service, then))
        if self._free:
            self._begin(self._free.pop())

    def _begin(self, thread: _Thread) -> None:
        service, then = self._queue.popleft()
        self._step(thread, service, service.round_trips, then)

    def _step(self, thread: _Thread, service: Service, left: int, then: Callable[[], None]) -> None:
        """Work, make a round trip, and go on with the next one, or end."""
        gateway = self._gateway
        if not left:
            if self._queue:
                self._begin(thread)
            else:
                self._free.append(thread)
            then()
            return
        on = partial(self._step, thread, service, left - 1, then)
        wait = gateway.platform.round_trip + (gateway.platform.commit if left == 1 else 0.0)
        after = partial(gateway.clock.after, wait, on) if wait else on
        statement = partial(gateway.postgres.do, service.database / service.round_trips, after)
        gateway.core.do(thread, service.thread / service.round_trips, statement)


class _Gateway:
    """One gateway: its core, its event loop, its batcher and its pools."""

    def __init__(self, platform: Platform, clock: _Clock, postgres: _Postgres, outcome: Outcome) -> None:
        self.platform = platform
        self.clock = clock
        self.postgres = postgres
        self.core = _Core(clock, 1.0 - platform.gateway_rest)
        self._outcome = outcome
        self._loop = _Thread()
        self._claims = _Pool(self, platform.claim_threads)
        self._work = _Pool(self, platform.work_threads)
        self._batches = _Pool(self, 1)
        self._waiting: deque[Callable[[], None]] = deque()
        self._batching = False
        self._next_batch = 0.0

    def heartbeat(self, answered: Callable[[], None]) -> None:
        """Receive a heartbeat."""
        half = self.platform.heartbeat.each.loop / 2
        self.core.do(self._loop, half, partial(self._wait_for_batch, answered))

    def claim(self, answered: Callable[[], None]) -> None:
        """Receive a claim."""
        self._request(self.platform.claim, self._claims, answered)

    def exchange(self, answered: Callable[[], None]) -> None:
        """Receive an exchange."""
        self._request(self.platform.exchange, self._work, answered)

    def _request(self, service: Service, pool: _Pool, answered: Callable[[], None]) -> None:
        answer = partial(self.core.do, self._loop, service.loop / 2, answered)
        self.core.do(self._loop, service.loop / 2, partial(pool.do, service, answer))

    def _wait_for_batch(self, answered: Callable[[], None]) -> None:
        self._waiting.append(answered)
        if not self._batching:
            self._batching = True
            self._pause()

    def _pause(self) -> None:
        pause = self._next_batch - self.clock.now
        if len(self._waiting) < MOST_IN_A_BATCH and pause > 0:
            self.clock.after(pause, self._batch)
        else:
            self._batch()

    def _batch(self) -> None:
        self._next_batch = self.clock.now + self.platform.spacing
        self._outcome.batches += 1
        taken = [self._waiting.popleft() for _ in range(min(MOST_IN_A_BATCH, len(self._waiting)))]
        fixed, each = self.platform.heartbeat.fixed, self.platform.heartbeat.each
        service = Service(
            loop=fixed.loop,
            thread=fixed.thread + len(taken) * each.thread,
            database=fixed.database + len(taken) * each.database,
            round_trips=fixed.round_trips,
        )
        ended = partial(self._batch_ended, taken)
        self.core.do(self._loop, fixed.loop, partial(self._batches.do, service, ended))

    def _batch_ended(self, taken: Sequence[Callable[[], None]]) -> None:
        half = self.platform.heartbeat.each.loop / 2
        for answered in taken:
            self.core.do(self._loop, half, answered)
        if self._waiting:
            self._pause()
        else:
            self._batching = False


def simulate(
    platform: Platform, demand: Demand, seconds: float, warm_up: float = 0.0, seed: int = 1
) -> Outcome:
    """Return what happens to the requests that come within so many seconds; latencies are of those after the warm-up.

    Requests are spread over the gateways at random, as many workers' are. The simulation goes on, without new ones, until all are
    answered, but no longer than twice the time: more demand than the platform can serve leaves some unanswered.
    """
    clock, outcome, rng = _Clock(), Outcome(), random.Random(seed)
    postgres = _Postgres(clock, platform)
    gateways = [_Gateway(platform, clock, postgres, outcome) for _ in range(platform.gateways)]

    def answered(kind: str, due: float, then: Callable[[], None] | None = None) -> None:
        outcome.answered[kind] += 1
        if due >= warm_up:
            outcome.seconds[kind].append(clock.now - due)
        if then is not None:
            then()

    def arrive(kind: str, gateway: _Gateway) -> None:
        outcome.arrived[kind] += 1
        if kind == "heartbeat":
            gateway.heartbeat(partial(answered, kind, clock.now))
        elif kind == "exchange":
            gateway.exchange(partial(answered, kind, clock.now))
        else:
            follows = partial(arrive, "exchange", gateway) if demand.exchange_follows else None
            gateway.claim(partial(answered, kind, clock.now, follows))

    def come(kind: str, times: Iterator[float]) -> None:
        due = next(times, None)
        if due is not None:
            clock.after(due - clock.now, partial(came, kind, times))

    def came(kind: str, times: Iterator[float]) -> None:
        arrive(kind, rng.choice(gateways))
        come(kind, times)

    within = demand.claims_within or seconds
    for piece in _times(rng, demand.claims * seconds * demand.beside / QUANTUM, within):
        clock.after(piece, partial(postgres.do, QUANTUM, _ignore))
    come("heartbeat", _times(rng, demand.heartbeats * seconds, seconds))
    come("claim", _times(rng, demand.claims * seconds, within))
    if not demand.exchange_follows:
        come("exchange", _times(rng, demand.claims * seconds, within))
    clock.run(seconds)
    outcome.gateway_busy = sum(each.core.busy for each in gateways) / seconds / len(gateways)
    outcome.postgres_busy = postgres.busy / seconds / platform.postgres_cores
    clock.run(2 * seconds)
    outcome.unanswered = sum(outcome.arrived.values()) - sum(outcome.answered.values())
    return outcome


def _ignore() -> None:
    """Go on with nothing."""


def _times(rng: random.Random, count: float, within: float) -> Iterator[float]:
    return iter(sorted(rng.uniform(0, within) for _ in range(round(count))))
