"""One worker as this gateway knows it: whether it may get a request, and why not.

Truth comes from three sides: the service table (who exists), the gateway's own probes (who says it
is ready, with the right revision and digest), and what happened to requests (who fails). An
endpoint that broke a connection must prove itself to a probe again before it gets more; one that
fails too much is out for a while (its circuit breaker is open), and back on trial after a probe.
``probing`` and ``forward`` report here; its set (``endpoints``) hears of every change.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sized
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from sluice_api import wire
from sluice_gateway.balance import LEAST_WARMTH, Rules
from sluice_gateway.upstream import Pool
from sluice_gateway.worker_answer import UpstreamAnswer

UNKNOWN_LIMIT: Final = 16
"""Requests given to a worker that does not tell its capacity."""
FAILURES_TO_EJECT: Final = 3
"""Also the most that are remembered: one that could not be put out, being the last, and has served
well since, is not put out for one failure when there are others."""
FORGIVEN: Final = 0.25
"""Of a failure, by each success: one that fails more than a fifth of its requests is out as well,
although the failures never come in a row."""
MAX_BLOCK_SECONDS: Final = 5.0
"""For which an endpoint that said it was full is left alone at most."""
EJECT_SECONDS: Final = 1.0
MAX_EJECT_SECONDS: Final = 30.0

_incarnations = itertools.count(1)


class State(StrEnum):
    """Where an endpoint stands; only ``ready`` ones get requests."""

    STARTING = "starting"
    READY = "ready"
    EJECTED = "ejected"
    MISMATCH = "mismatch"
    GONE = "gone"


_READY: Final = State.READY
"""Reading it off the class costs as much as a call."""

_JUDGED: Final = frozenset((State.EJECTED, State.GONE))
"""What requests find there changes nothing."""


class Holder(Protocol):
    """Who holds a lease, or wants one.

    Attributes:
        affinity: where on the ring its endpoint is best looked for; None when anywhere.
    """

    @property
    def affinity(self) -> int | None: ...
    def endpoint_lost(self) -> None:
        """The endpoint does not react any more; whatever runs there will not come back."""
        ...


class Owner(Protocol):
    """The set that an endpoint belongs to.

    Attributes:
        rules: of balancing.
        load: requests at the ready endpoints.
        ejections: by cause.
        awaited: whether anybody waits for an endpoint to become ready.
        waiting: who waits for room.
        on_room: called when a lease was given back, while somebody does.
    """

    rules: Rules
    load: int
    ejections: Counter[str]
    awaited: Callable[[], bool]
    waiting: Sized
    on_room: Callable[[], None]

    def refresh(self, endpoint: "Endpoint") -> None:
        """Its room may have come or gone."""
        ...

    def resized(self, endpoint: "Endpoint", before: int) -> None:
        """It can hold more than ``before``, or less."""
        ...

    def blocked(self, endpoint: "Endpoint") -> None:
        """It is left alone until the time that it named."""
        ...

    def warming(self, now: float) -> None:
        """It begins its slow start."""
        ...

    def may_eject(self, endpoint: "Endpoint") -> bool:
        """Whether the others can do without it."""
        ...

    def admit(self, endpoint: "Endpoint") -> None:
        """It is proven: let it in, if it is what the service is meant to be."""
        ...

    def changed(self) -> None:
        """Its state is another."""
        ...


class Lease(msgspec.Struct, eq=False):
    """One request's place at an endpoint. :meth:`release` is idempotent."""

    endpoint: "Endpoint"
    holder: Holder | None

    def release(self) -> None:
        if self.holder is None:
            return
        self.holder = None
        endpoint = self.endpoint
        owner = endpoint._owner
        endpoint._leases.discard(self)
        endpoint.in_flight -= 1
        if endpoint.state is _READY:
            owner.load -= 1
            if endpoint.in_flight == endpoint.limit - 1:
                owner.refresh(endpoint)
        if owner.waiting:
            owner.on_room()


class Endpoint:
    """One worker."""

    def __init__(self, url: str, revision: str, owner: Owner, pool: Pool, zone: str = "") -> None:
        self.url = url
        self.revision = revision
        self.zone = zone
        self.pool = pool
        self.state = State.STARTING
        self.message = "not probed yet"
        self.readiness: wire.Readiness | None = None
        """What made it ready; None when it is not."""
        self.told: wire.Readiness | None = None
        """What it said last, ready or not; None when it says nothing."""
        self.incarnation = 0
        self.in_flight = 0
        self.background = 0
        """Of these, the gateway's own."""
        self.limit = UNKNOWN_LIMIT
        self.blocked_until = 0.0
        """It said that it is full; 0 when it may be asked."""
        self.out_until = 0.0
        self.answered_at = 0.0
        self.warm_since = 0.0
        """When its slow start began."""
        self.nudge: Callable[[], None] = lambda: None
        """Have it probed at once; set by ``probing``."""
        self._fresh = True  # Nothing that it may have had in memory is there any more.
        self._failures = 0.0
        self._ejections = 0
        self._owner = owner
        self._leases: set[Lease] = set()

    def __repr__(self) -> str:
        return f"<Endpoint {self.pool.address} {self.state} {self.in_flight}/{self.limit}>"

    @property
    def has_room(self) -> bool:
        return self.in_flight < self.limit and not self.blocked_until

    @property
    def awaited(self) -> bool:
        """Somebody waits for an endpoint of the service to become ready."""
        return self._owner.awaited()

    def warmth(self, now: float) -> float:
        """See :class:`~sluice_gateway.balance.Candidate`."""
        ramp = self._owner.rules.slow_start_seconds
        age = now - self.warm_since
        return 1.0 if age >= ramp else max(LEAST_WARMTH, age / ramp)

    def lease(self, holder: Holder) -> Lease:
        lease = Lease(self, holder)
        owner = self._owner
        self._leases.add(lease)
        self.in_flight += 1
        owner.load += 1
        if self.in_flight >= self.limit:
            owner.refresh(self)
        return lease

    # What requests found --------------------------------------------------------------------------

    def heard(self, answer: UpstreamAnswer, now: float) -> None:
        """An answer came, whatever it says: take the capacity from it."""
        self.answered_at = now
        if answer.limit is not None and answer.limit != self.limit:
            self._resize(answer.limit)

    def served(self, answer: UpstreamAnswer, now: float) -> None:
        """A good answer came: :meth:`heard` and :meth:`succeeded` in one."""
        self.answered_at = now
        if answer.limit is not None and answer.limit != self.limit:
            self._resize(answer.limit)
        if self._failures or self._ejections:
            self.succeeded()

    def succeeded(self) -> None:
        if self._failures or self._ejections:
            self._failures = max(0.0, self._failures - FORGIVEN)
            if not self._failures:
                self._ejections = 0

    def full(self, retry_after: float, now: float) -> None:
        """It refused for lack of room; its word counts for more than our arithmetic."""
        until = now + min(retry_after, MAX_BLOCK_SECONDS)
        if until > self.blocked_until:
            self.blocked_until = until
            self._owner.blocked(self)

    def unblock(self, now: float) -> None:
        """For sets of endpoints: the time that it named may have passed."""
        if self.blocked_until <= now:
            self.blocked_until = 0.0
            self._owner.refresh(self)

    def failed(self, now: float, cause: str, *, prove: bool, message: str = "") -> None:
        """A request failed here. With ``prove``, it must pass a probe before it gets another.

        Args:
            cause: one of few words; the metric of ejections has it.
            message: more about it, for people.
        """
        if self.state in _JUDGED:
            return  # Requests that were still on their way.
        self._failures = min(self._failures + 1, FAILURES_TO_EJECT)
        if self._failures >= FAILURES_TO_EJECT and self._owner.may_eject(self):
            self._failures = 0.0
            self._ejections += 1
            pause = min(EJECT_SECONDS * 2 ** (self._ejections - 1), MAX_EJECT_SECONDS)
            self.out_until = now + pause
            self._fresh = True
            self._enter(State.EJECTED, f"{message or cause}; out for {pause:g} s")
            self._owner.ejections[cause] += 1
        elif prove and self.state is State.READY:
            self._enter(State.STARTING, message or cause)
            self.nudge()

    def _resize(self, limit: int) -> None:
        before, self.limit = self.limit, limit
        self._owner.resized(self, before)

    # What probes found ----------------------------------------------------------------------------

    def proved(self, readiness: wire.Readiness, now: float) -> None:
        """It answered a probe with 200."""
        self.readiness = readiness
        if readiness.capacity is not None and readiness.capacity.limit != self.limit:
            self._resize(readiness.capacity.limit)
        if self.state is State.EJECTED:
            if now < self.out_until:
                return
            # On trial (half open): one more failure, and it is out again for twice as long.
            self._failures = FAILURES_TO_EJECT - 1.0
        if self._fresh:
            self._fresh = False
            self.warm_since = now
            self._owner.warming(now)
        self._owner.admit(self)

    def not_ready(self, message: str) -> None:
        """It answered that it is not ready: no new requests, those in flight go on."""
        if self.state not in _JUDGED:
            self.readiness = None
            self._enter(State.STARTING, message)

    def unresponsive(self, message: str) -> None:
        """It does not answer at all; requests in flight are taken back."""
        self.told = None
        self._fresh = True
        self.not_ready(message)
        for lease in list(self._leases):
            if lease.holder is not None:
                lease.holder.endpoint_lost()

    def _enter(self, state: State, message: str) -> None:
        self.message = message
        if state is not self.state:
            self.state = state
            if state is State.READY:
                self.incarnation = next(_incarnations)
            self._owner.changed()

    def enter(self, state: State, message: str = "") -> None:
        """For the owning set alone."""
        self._enter(state, message)

    def join(self, owner: Owner) -> None:
        """Belong to another set, as it stands."""
        self._owner = owner
        if self.blocked_until:
            owner.blocked(self)

    def retire(self) -> None:
        """Out of the table: nothing new, and no idle connection is kept."""
        self._enter(State.GONE, "removed")
        self.pool.retire()
