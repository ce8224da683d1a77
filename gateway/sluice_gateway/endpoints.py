"""The workers of one service: which of them gets the next request.

The set keeps the ready endpoints as lists for the policies of ``balance``, and follows the service
table. What is judged of one worker stands in ``endpoint``; ``admission`` takes leases here.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Set, Sized
from heapq import heappop, heappush
from random import random
from typing import Final

from sluice_api import wire
from sluice_gateway.balance import Rules, near_first, slow_start, two_choices, within_bound
from sluice_gateway.endpoint import Endpoint, Holder, Lease, State
from sluice_gateway.ring import Ring
from sluice_gateway.room import Roster
from sluice_gateway.timers import TimerWheel
from sluice_gateway.upstream import Pool
from sluice_gateway.worker_url import split_url

_RULES: Final = Rules()
_tickets = itertools.count(1)

log = logging.getLogger(__name__)


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
        self.waiting: Sized = ()
        """Who waits for room, and what is called when there is some; ``admission`` sets both."""
        self.on_room: Callable[[], None] = _nothing
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

    def has_place(self) -> bool:
        """Whether one that comes now surely need not wait."""
        return not self.waiting and bool(self._roomy.members)

    def choose(self, holder: Holder, excluded: Set[int], now: float) -> Lease | None:
        """A lease on the endpoint that should get the next request, if one has room."""
        if self._blocked and self._blocked[0][0] <= now:
            self._unblock(now)
        if not self._roomy.members:
            return None
        if len(self.ready) == 1:
            chosen: Endpoint | None = self.ready[0]
            assert chosen is not None
            if chosen.incarnation in excluded:
                return None
        else:
            key = holder.affinity
            chosen = self._at_home(key, excluded, now) if key is not None else None
            if chosen is None:
                policy = two_choices if now >= self._warm_at else slow_start
                roomy, near = self._roomy.members, self._near.members
                if near and len(near) < len(roomy):
                    chosen = near_first(near, roomy, excluded, now, random, policy)
                else:
                    chosen = policy(roomy, excluded, now, random)
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
        heappush(self._blocked, (endpoint.blocked_until, next(_tickets), endpoint))
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
