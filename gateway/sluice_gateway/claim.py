"""What an exchange would compute, unless another gateway computes it already.

``dispatch`` starts a :class:`Claim` in place of a ``Computation`` where an answer takes long enough
for it. It leases the keys first; what is leased elsewhere it waits for, by looking for the answer
every few moments, and not for long: then it computes by itself. A leader's failure is everybody's,
unless it may come from the leader's own request.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from sluice_api.errors import ApiError
from sluice_gateway.cache import Hit, ResponseCache
from sluice_gateway.coalesce import Flights, Result
from sluice_gateway.computation import Computation
from sluice_gateway.exchange import Exchange
from sluice_gateway.head import PLAIN
from sluice_gateway.lease import MAX_KEYS, Leases, State
from sluice_gateway.priority import Priority
from sluice_gateway.service import Service
from sluice_gateway.timers import TimerWheel

NOT_MINE: Final = frozenset((400, 404, 413, 504))
"""A leader's failure with one of these may come from its own inputs or its own deadline."""
WORTH_SECONDS: Final = 0.02
"""What is computed faster is computed twice rather than asked about first."""
UNKNOWN_SECONDS: Final = 1.0
"""What a computation is taken to last before one has been seen."""

_PATIENCE: Final = 3.0
"""How many times the usual duration others' answers are waited for."""
_LIFE: Final = 4.0
"""How many times the usual duration a lease lasts."""
_LIFE_SECONDS: Final = (1.0, 60.0)
_LOOK_SECONDS: Final = (0.01, 0.1)
_ROUNDS: Final = 2
"""How often a lease is asked for: again when its holder has let go of it without an answer."""


def worth_leasing(service: Service, exchange: Exchange, leases: Leases | None) -> bool:
    """Whether to ask the other gateways first."""
    if leases is None or exchange.request.head.directives is not PLAIN:
        return False
    usual = service.usual_seconds
    short = len(exchange.keys) <= MAX_KEYS
    return short and (usual == 0 or usual >= WORTH_SECONDS) and leases.available


def life_seconds(service: Service) -> float:
    """How long a lease for one computation lasts."""
    return _within(_LIFE * (service.usual_seconds or UNKNOWN_SECONDS), _LIFE_SECONDS)


class Claim:
    """The inputs of ``exchange`` at ``indexes`` (complete when it starts), for all gateways.

    Args:
        flights: where the results land for all in this process who wait.
    """

    __slots__ = (
        "_cache",
        "_exchange",
        "_flights",
        "_followed",
        "_indexes",
        "_keys",
        "_leases",
        "_parts",
        "_rounds",
        "_service",
        "_template",
        "_until",
        "_wanted",
        "_wheel",
    )

    def __init__(
        self,
        exchange: Exchange,
        indexes: list[int],
        cache: ResponseCache,
        flights: Flights,
        leases: Leases,
        wheel: TimerWheel,
        on_result: Callable[[Exchange, int, Result], None],
    ) -> None:
        self._exchange = exchange
        self._indexes = indexes
        self._template = Computation(exchange, indexes, cache, flights, on_result)
        self._service = exchange.service
        self._keys = exchange.keys
        self._cache = cache
        self._flights = flights
        self._leases = leases
        self._wheel = wheel
        self._wanted: set[int] = set()
        self._followed: set[int] = set()
        self._parts: dict[int, Computation] = {}
        self._rounds = 0
        self._until = 0.0

    def __repr__(self) -> str:
        return f"<Claim of {len(self._wanted)} inputs, {len(self._followed)} computed elsewhere>"

    def start(self) -> None:
        self._wanted = set(self._indexes)
        usual = self._service.usual_seconds or UNKNOWN_SECONDS
        patience = min(_PATIENCE * usual, life_seconds(self._service))
        self._until = time.monotonic() + patience
        self._take(self._indexes)

    @property
    def priority(self) -> Priority:
        return self._exchange.priority

    def hurry(self, priority: Priority) -> None:
        """Somebody more urgent waits for one of the inputs: so do they for all, by now or later."""
        self._exchange.urged = priority
        for part in {id(part): part for part in self._parts.values()}.values():
            part.hurry(priority)

    def abandoned(self, index: int) -> None:
        """Nobody waits for this input any more."""
        self._wanted.discard(index)
        self._followed.discard(index)
        part = self._parts.pop(index, None)
        if part is not None:
            part.abandoned(index)

    def _take(self, indexes: list[int]) -> None:
        self._rounds += 1
        keys = [self._keys[index] for index in indexes]
        self._leases.take(keys, life_seconds(self._service), partial(self._taken, indexes))

    def _taken(self, indexes: list[int], taken: list[bool | None]) -> None:
        mine, theirs = [], []
        for index, leased in zip(indexes, taken, strict=True):
            if index not in self._wanted:
                self._leases.free(self._keys[index])
            elif leased is False:
                theirs.append(index)
            else:
                mine.append(index)
                self._service.series.leases["led" if leased else "alone"] += 1
        if mine:
            self._compute(mine)
        if theirs:
            self._followed.update(theirs)
            self._look_later()

    def _compute(self, indexes: list[int]) -> None:
        part = self._template.part(indexes, self._leases)
        for index in indexes:
            self._followed.discard(index)
            self._parts[index] = part
        part.start()

    # Following ------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        usual = self._service.usual_seconds or UNKNOWN_SECONDS
        self._wheel.after(_within(usual / 8, _LOOK_SECONDS), self._look)

    def _look(self) -> None:
        indexes = sorted(self._followed)
        if indexes:
            keys = [self._keys[index] for index in indexes]
            self._cache.fetch(keys, partial(self._found, indexes), owner=self._exchange.owner)

    def _found(self, indexes: list[int], hits: list[Hit | None]) -> None:
        for index, hit in zip(indexes, hits, strict=True):
            if index in self._followed and hit is not None and hit.ttl_seconds > 0:
                self._forget(index, "followed")
                self._exchange.collapsed += 1
                self._flights.land(self._keys[index], hit.item)
        missing = [index for index in indexes if index in self._followed]
        if missing:
            keys = [self._keys[index] for index in missing]
            self._leases.look(keys, partial(self._looked, missing))

    def _looked(self, indexes: list[int], states: list[State]) -> None:
        over = time.monotonic() >= self._until
        again, alone = [], []
        for index, state in zip(indexes, states, strict=True):
            if index not in self._followed:
                continue
            if isinstance(state, ApiError) and state.status not in NOT_MINE:
                self._forget(index, "failed")
                self._flights.land(self._keys[index], state)
            elif over or (state != "held" and self._rounds >= _ROUNDS):
                alone.append(index)
            elif state != "held":
                again.append(index)
        if alone:
            self._service.series.leases["alone"] += len(alone)
            self._compute(alone)
        if again:
            self._followed.difference_update(again)
            self._take(again)
        elif self._followed:
            self._look_later()

    def _forget(self, index: int, outcome: str) -> None:
        self._followed.discard(index)
        self._wanted.discard(index)
        self._service.series.leases[outcome] += 1


def _within(seconds: float, bounds: tuple[float, float]) -> float:
    return min(max(seconds, bounds[0]), bounds[1])
