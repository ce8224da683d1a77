"""The workers of one service as this gateway knows them: who may get a request, who is out and why.

Truth comes from three sides: the service table (who exists), the gateway's own probes (who says it
is ready, with the right revision and digest), and what happened to requests (who fails). An
endpoint that broke a connection must prove itself to a probe again before it gets more.
``probing`` and ``forward`` report here; ``admission`` takes leases.
"""

import itertools
import logging
import random
import time
from collections.abc import Callable, Set
from enum import StrEnum
from typing import Final, Protocol

from sluice_api import wire
from sluice_gateway.balance import two_choices
from sluice_gateway.timers import TimerWheel
from sluice_gateway.upstream import Pool, UpstreamAnswer

UNKNOWN_LIMIT: Final = 16
"""Requests given to a worker that does not tell its capacity."""
FAILURES_TO_EJECT: Final = 3
EJECT_SECONDS: Final = 1.0
MAX_EJECT_SECONDS: Final = 30.0
MAX_EJECTED_SHARE: Final = 0.5

_incarnations = itertools.count(1)

log = logging.getLogger(__name__)


class State(StrEnum):
    """Where an endpoint stands; only ``ready`` ones get requests."""

    STARTING = "starting"
    READY = "ready"
    EJECTED = "ejected"
    MISMATCH = "mismatch"
    GONE = "gone"


class Holder(Protocol):
    """Who holds a lease."""

    def endpoint_lost(self) -> None:
        """The endpoint does not react any more; whatever runs there will not come back."""
        ...


class Lease:
    """One request's place at an endpoint. :meth:`release` is idempotent."""

    __slots__ = ("endpoint", "holder")

    def __init__(self, endpoint: "Endpoint", holder: Holder) -> None:
        self.endpoint: Endpoint = endpoint
        self.holder: Holder | None = holder

    def release(self) -> None:
        if self.holder is not None:
            self.holder = None
            self.endpoint.leave(self)


class Endpoint:
    """One worker."""

    def __init__(self, url: str, revision: str, owner: "EndpointSet", pool: Pool) -> None:
        self.url = url
        self.revision = revision
        self.pool = pool
        self.state = State.STARTING
        self.message = "not probed yet"
        self.readiness: wire.Readiness | None = None
        """What made it ready; None when it is not."""
        self.told: wire.Readiness | None = None
        """What it said last, ready or not; None when it says nothing."""
        self.incarnation = 0
        self.in_flight = 0
        self.limit = UNKNOWN_LIMIT
        self.blocked_until = 0.0
        self.out_until = 0.0
        self.answered_at = 0.0
        self.nudge: Callable[[], None] = lambda: None
        """Have it probed at once; set by ``probing``."""
        self._failures = 0
        self._ejections = 0
        self._owner = owner
        self._leases: set[Lease] = set()

    def __repr__(self) -> str:
        return f"<Endpoint {self.pool.address} {self.state} {self.in_flight}/{self.limit}>"

    def has_room(self, now: float) -> bool:
        return self.in_flight < self.limit and self.blocked_until <= now

    def lease(self, holder: Holder) -> Lease:
        lease = Lease(self, holder)
        self._leases.add(lease)
        self.in_flight += 1
        return lease

    def leave(self, lease: Lease) -> None:
        self._leases.discard(lease)
        self.in_flight -= 1
        self._owner.on_room()

    # What requests found --------------------------------------------------------------------------

    def heard(self, answer: UpstreamAnswer, now: float) -> None:
        """An answer came, whatever it says: take the capacity from it."""
        self.answered_at = now
        if answer.limit is not None:
            self.limit = answer.limit

    def succeeded(self) -> None:
        self._failures = 0
        self._ejections = 0

    def full(self, retry_after: float, now: float) -> None:
        """It refused for lack of room; its word counts for more than our arithmetic."""
        self.blocked_until = max(self.blocked_until, now + min(retry_after, 5.0))

    def failed(self, now: float, reason: str, *, prove: bool) -> None:
        """A request failed here. With ``prove``, it must pass a probe before it gets another."""
        if self.state is State.EJECTED:
            return  # Requests that were still on their way; this has been judged.
        self._failures += 1
        if self._failures >= FAILURES_TO_EJECT and self._owner.may_eject():
            self._failures = 0
            self._ejections += 1
            pause = min(EJECT_SECONDS * 2 ** (self._ejections - 1), MAX_EJECT_SECONDS)
            self.out_until = now + pause
            self._enter(State.EJECTED, f"{reason}; out for {pause:g} s")
            self._owner.ejections += 1
        elif prove and self.state is State.READY:
            self._enter(State.STARTING, reason)
            self.nudge()

    # What probes found ----------------------------------------------------------------------------

    def proved(self, readiness: wire.Readiness, now: float) -> None:
        """It answered a probe with 200."""
        self.readiness = readiness
        if readiness.capacity is not None:
            self.limit = readiness.capacity.limit
        if self.state is not State.EJECTED or now >= self.out_until:
            self._owner.admit(self)

    def not_ready(self, message: str) -> None:
        """It answered that it is not ready: no new requests, those in flight go on."""
        if self.state is not State.EJECTED:
            self.readiness = None
            self._enter(State.STARTING, message)

    def unresponsive(self, message: str) -> None:
        """It does not answer at all; requests in flight are taken back."""
        self.told = None
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

    def retire(self) -> None:
        """Out of the table: nothing new, and no idle connection is kept."""
        self._enter(State.GONE, "removed")
        self.pool.retire()


class EndpointSet:
    """All endpoints of a service, and the ready ones among them as a list for the balancer.

    Args:
        on_change: called after any endpoint changed its state.
        on_room: called when a lease was given back.
    """

    def __init__(
        self, wheel: TimerWheel, on_change: Callable[[], None], on_room: Callable[[], None]
    ) -> None:
        self.all: dict[str, Endpoint] = {}
        self.ready: list[Endpoint] = []
        self.revision = ""
        self.answer_digest = ""
        self.digest_learnt = False
        self.ejections = 0
        self.version = 0
        """Rises with every change of an endpoint's state."""
        self.on_room = on_room
        self._on_change = on_change
        self._applying = False
        self._wheel = wheel

    def __repr__(self) -> str:
        return f"<EndpointSet {len(self.ready)} of {len(self.all)} ready>"

    def choose(self, holder: Holder, excluded: Set[int], now: float) -> Lease | None:
        """A lease on the endpoint that should get the next request, if one has room."""
        ready = self.ready
        if len(ready) == 1:
            chosen: Endpoint | None = ready[0]
            assert chosen is not None
            if not chosen.has_room(now) or chosen.incarnation in excluded:
                return None
        else:
            chosen = two_choices(ready, excluded, now, random.random)
            if chosen is None:
                return None
        return chosen.lease(holder)

    def has_room(self, now: float) -> bool:
        return any(endpoint.has_room(now) for endpoint in self.ready)

    def slots(self) -> int:
        """Requests the ready endpoints can hold together."""
        return sum(endpoint.limit for endpoint in self.ready)

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
                continue
            if url in spare and spare[url].revision == endpoint_revision:
                self.all[url] = endpoint = spare.pop(url)
                endpoint.join(self)
                continue
            host, port = split_url(url)
            pool = Pool(host, port, self._wheel)
            self.all[url] = endpoint = Endpoint(url, endpoint_revision, self, pool)
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

    def may_eject(self) -> bool:
        out = sum(1 for e in self.all.values() if e.state is State.EJECTED)
        return out + 1 <= len(self.all) * MAX_EJECTED_SHARE

    def changed(self) -> None:
        if self._applying:
            return
        self.version += 1
        self.ready = [e for e in self.all.values() if e.state is State.READY]
        self._on_change()

    def unblocked_at(self) -> float | None:
        """When the first endpoint that said it was full may be asked again."""
        now = time.monotonic()
        moments = [e.blocked_until for e in self.ready if e.blocked_until > now]
        return min(moments, default=None)


def split_url(url: str) -> tuple[str, int]:
    """Host and port of an endpoint's URL. Raises ValueError unless it is plain ``http://``."""
    scheme, _, rest = url.partition("://")
    authority = rest.rstrip("/")
    host, _, port = authority.rpartition(":")
    if scheme != "http" or not host or not port.isdigit() or "/" in authority:
        raise ValueError(f"{url!r} is not of the form http://HOST:PORT")
    return host.strip("[]"), int(port)
