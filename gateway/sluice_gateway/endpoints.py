"""The workers of one service as this gateway knows them: who may get a request, who is out and why.

Truth comes from three sides: the service table (who exists), the gateway's own probes (who says it
is ready, with the right revision and digest), and what happened to requests (who fails). An
endpoint that broke a connection must prove itself to a probe again before it gets more; one that
fails too much is out for a while (its circuit breaker is open), and back on trial after a probe.
``probing`` and ``forward`` report here; ``admission`` takes leases.
"""

import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Set
from enum import StrEnum
from heapq import heappop, heappush
from typing import Final, Protocol

import msgspec

from sluice_api import wire
from sluice_gateway.balance import (
    LEAST_WARMTH,
    Rules,
    near_first,
    slow_start,
    two_choices,
    within_bound,
)
from sluice_gateway.ring import Ring
from sluice_gateway.room import Roster
from sluice_gateway.timers import TimerWheel
from sluice_gateway.upstream import Pool
from sluice_gateway.worker_answer import UpstreamAnswer
from sluice_gateway.worker_url import split_url

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
_RULES: Final = Rules()

log = logging.getLogger(__name__)


class State(StrEnum):
    """Where an endpoint stands; only ``ready`` ones get requests."""

    STARTING = "starting"
    READY = "ready"
    EJECTED = "ejected"
    MISMATCH = "mismatch"
    GONE = "gone"


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


class Lease(msgspec.Struct, eq=False):
    """One request's place at an endpoint. :meth:`release` is idempotent."""

    endpoint: "Endpoint"
    holder: Holder | None

    def release(self) -> None:
        if self.holder is not None:
            self.holder = None
            self.endpoint.leave(self)


class Endpoint:
    """One worker."""

    def __init__(
        self, url: str, revision: str, owner: "EndpointSet", pool: Pool, zone: str = ""
    ) -> None:
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

    def leave(self, lease: Lease) -> None:
        owner = self._owner
        self._leases.discard(lease)
        self.in_flight -= 1
        if self.state is State.READY:
            owner.load -= 1
            if self.in_flight == self.limit - 1:
                owner.refresh(self)
        owner.on_room()

    # What requests found --------------------------------------------------------------------------

    def heard(self, answer: UpstreamAnswer, now: float) -> None:
        """An answer came, whatever it says: take the capacity from it."""
        self.answered_at = now
        if answer.limit is not None and answer.limit != self.limit:
            self._resize(answer.limit)

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

    def join(self, owner: "EndpointSet") -> None:
        """Belong to another set, as it stands."""
        self._owner = owner
        if self.blocked_until:
            owner.blocked(self)

    def retire(self) -> None:
        """Out of the table: nothing new, and no idle connection is kept."""
        self._enter(State.GONE, "removed")
        self.pool.retire()


class EndpointSet:
    """All endpoints of a service, and the ready ones among them as a list for the balancer.

    Args:
        on_change: called after any endpoint changed its state.
        awaited: whether anybody waits for an endpoint to become ready.
    """

    def __init__(
        self,
        wheel: TimerWheel,
        on_change: Callable[[], None],
        rules: Rules = _RULES,
        awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        self.all: dict[str, Endpoint] = {}
        self.ready: list[Endpoint] = []
        self.rules = rules
        self.awaited = awaited
        self.load = 0
        """Requests at the ready endpoints."""
        self.slots = 0
        """Requests that they can hold together."""
        self.revision = ""
        self.answer_digest = ""
        self.digest_learnt = False
        self.ejections: Counter[str] = Counter()
        self.prefixes: Counter[str] = Counter()
        """Requests looked for on the ring: at home there, or beyond the bound on its load."""
        self.version = 0
        """Rises with every change of an endpoint's state."""
        self.began_at = 0.0
        """When the last of them began anew, and did not just prove itself again."""
        self.on_room: Callable[[], None] = _nothing
        """Called when a lease was given back; ``admission`` sets it."""
        self._on_change = on_change
        self._applying = False
        self._wheel = wheel
        self._roomy: Roster[Endpoint] = Roster()
        self._near: Roster[Endpoint] = Roster()
        self._blocked: list[tuple[float, int, Endpoint]] = []
        self._warm_at = 0.0
        self._ring: Ring[Endpoint] = Ring()
        self._ring_version = -1

    def __repr__(self) -> str:
        return f"<EndpointSet {len(self.ready)} of {len(self.all)} ready>"

    def choose(self, holder: Holder, excluded: Set[int], now: float) -> Lease | None:
        """A lease on the endpoint that should get the next request, if one has room."""
        if not self.has_room(now):
            return None
        if len(self.ready) == 1:
            chosen: Endpoint | None = self.ready[0]
            assert chosen is not None
            if chosen.incarnation in excluded:
                return None
        else:
            key = holder.affinity
            home = self._at_home(key, excluded, now) if key is not None else None
            chosen = home or self._least_loaded(excluded, now)
            if chosen is None:
                return None
        return chosen.lease(holder)

    def _at_home(self, key: int, excluded: Set[int], now: float) -> Endpoint | None:
        """Where what the request begins with has been computed before, perhaps."""
        if self._ring_version != self.version:
            self._ring_version = self.version
            self._ring.follow(self.ready)
        home = self._ring.home(key)
        if (
            home is not None
            and home in self._roomy
            and home.incarnation not in excluded
            and within_bound(home, self.load, self.slots, now)
        ):
            self.prefixes["home"] += 1
            return home
        self.prefixes["elsewhere"] += 1
        return None

    def _least_loaded(self, excluded: Set[int], now: float) -> Endpoint | None:
        policy = two_choices if now >= self._warm_at else slow_start
        roomy, near = self._roomy.members, self._near.members
        if near and len(near) < len(roomy):
            return near_first(near, roomy, excluded, now, random.random, policy)
        return policy(roomy, excluded, now, random.random)

    def has_room(self, now: float) -> bool:
        """Whether any ready endpoint has."""
        if self._blocked and self._blocked[0][0] <= now:
            self._unblock(now)
        return bool(self._roomy.members)

    # What the endpoints tell their set ------------------------------------------------------------

    def resized(self, endpoint: Endpoint, before: int) -> None:
        """It can hold more than ``before``, or less."""
        if endpoint.state is State.READY:
            self.slots += endpoint.limit - before
            self.refresh(endpoint)

    def blocked(self, endpoint: Endpoint) -> None:
        """It is left alone until the time that it named."""
        heappush(self._blocked, (endpoint.blocked_until, next(_incarnations), endpoint))
        self.refresh(endpoint)

    def warming(self, now: float) -> None:
        """One of them begins its slow start."""
        self.began_at = now
        self._warm_at = now + self.rules.slow_start_seconds

    def refresh(self, endpoint: Endpoint) -> None:
        """Have it among those with room exactly if it has some."""
        near = self.rules.zone and endpoint.zone == self.rules.zone
        if endpoint.state is State.READY and endpoint.has_room:
            self._roomy.put(endpoint)
            if near:
                self._near.put(endpoint)
        else:
            self._roomy.drop(endpoint)
            if near:
                self._near.drop(endpoint)

    def _unblock(self, now: float) -> None:
        while self._blocked and self._blocked[0][0] <= now:
            _, _, endpoint = heappop(self._blocked)
            endpoint.unblock(now)

    # What the table tells -------------------------------------------------------------------------

    def give_up(self, kept: list[wire.Endpoint], revision: str) -> dict[str, Endpoint]:
        """Take out all endpoints but those ``kept``; they go on until :meth:`apply` is called."""
        urls = {entry.url: entry.revision or revision for entry in kept}
        gone = [e for e in self.all.values() if urls.get(e.url) != e.revision]
        return {e.url: self.all.pop(e.url) for e in gone}

    def apply(
        self,
        wanted: list[wire.Endpoint],
        revision: str,
        answer_digest: str,
        spare: dict[str, Endpoint],
    ) -> list[Endpoint]:
        """Follow the table, after :meth:`give_up`.

        Args:
            spare: endpoints that belong to nobody; those that are wanted here are taken out of it.

        Returns:
            The endpoints that are new to everybody.
        """
        came = []
        for entry in wanted:
            url, endpoint_revision = entry.url, entry.revision or revision
            if url in self.all:
                self.all[url].zone = entry.zone
                continue
            if url in spare and spare[url].revision == endpoint_revision:
                self.all[url] = endpoint = spare.pop(url)
                endpoint.zone = entry.zone
                endpoint.join(self)
                continue
            host, port = split_url(url)
            pool = Pool(host, port, self._wheel, self.rules.connect_seconds)
            self.all[url] = endpoint = Endpoint(url, endpoint_revision, self, pool, entry.zone)
            came.append(endpoint)
        rolled_out = revision != self.revision
        self.revision, self.answer_digest = revision, answer_digest
        # One change to those who watch: a roll-out is not a moment without ready endpoints.
        self._applying = True
        for endpoint in self.all.values():
            if endpoint.state in (State.READY, State.MISMATCH):
                self.admit(endpoint)
            elif rolled_out:
                endpoint.nudge()  # Whoever wrote the table may know already that it is ready.
        self._applying = False
        self.changed()
        return came

    def admit(self, endpoint: Endpoint) -> None:
        """Let a proven endpoint in, if it is what the service is meant to be."""
        problem = self._mismatch(endpoint)
        if problem:
            if problem != endpoint.message and not self._of_another_revision(endpoint):
                log.warning(
                    "worker is not what the table says and gets no requests",
                    extra={"endpoint": endpoint.url, "reason": problem},
                )
            endpoint.enter(State.MISMATCH, problem)
        elif endpoint.state is not State.GONE:
            endpoint.enter(State.READY)

    def _mismatch(self, endpoint: Endpoint) -> str:
        told = endpoint.readiness
        if told is None:
            return "not proven"
        if told.revision != endpoint.revision:
            return f"the table says revision {endpoint.revision}, the worker {told.revision}"
        if told.revision != self.revision:
            return f"revision {told.revision}, the service is at {self.revision}"
        if self.answer_digest and told.answer_digest != self.answer_digest:
            ready = (e for e in self.all.values() if e.state is State.READY)
            others = [other for other in ready if other is not endpoint]
            if self.digest_learnt and not others:
                return ""  # What was learnt from workers that are gone binds nobody.
            return f"answer digest {told.answer_digest}, the revision has {self.answer_digest}"
        return ""

    def _of_another_revision(self, endpoint: Endpoint) -> bool:
        """It is what the table says of it, and before or after its turn in a roll-out."""
        told = endpoint.readiness
        return told is not None and told.revision == endpoint.revision != self.revision

    def mismatch(self) -> str:
        """What callers may know about endpoints that are not what they should be, or nothing."""
        for endpoint in self.all.values():
            told = endpoint.readiness
            if endpoint.state is State.MISMATCH and told is not None:
                if told.revision != self.revision:
                    return "A worker answers, but for another revision of the model."
                return "A worker answers, but it has loaded something else than this revision."
        return ""

    def may_eject(self, endpoint: Endpoint) -> bool:
        """Whether at least as many others serve as would then be out.

        Those that start are no help to anybody, however many they are.
        """
        out = sum(1 for e in self.all.values() if e.state is State.EJECTED)
        serving = len(self.ready) - (endpoint.state is State.READY)
        return out + 1 <= serving

    def changed(self) -> None:
        if self._applying:
            return
        self.version += 1
        self.ready = [e for e in self.all.values() if e.state is State.READY]
        self.load = sum(e.in_flight for e in self.ready)
        self.slots = sum(e.limit for e in self.ready)
        roomy = [e for e in self.ready if e.has_room]
        self._roomy.replace(roomy)
        zone = self.rules.zone
        self._near.replace(e for e in roomy if zone and e.zone == zone)
        self._on_change()

    def unblocked_at(self) -> float | None:
        """When the first endpoint that said it was full may be asked again."""
        return self._blocked[0][0] if self._blocked else None


def _nothing() -> None:
    """Nobody waits for room."""
