"""Which endpoint gets the next request: pure functions over a snapshot of those with room.

``endpoints`` calls them for a request whose turn it is; ``room`` keeps the snapshots. Adding a
policy is adding a function of the same shape here, and the line in ``EndpointSet`` that says when
it is used. ``docs/balancing.md`` tells users.
"""

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

LOAD_BOUND: Final = 1.25
"""How far above the mean load an endpoint may go for the sake of what it has in memory."""
LEAST_WARMTH: Final = 0.1
"""Share of its requests that an endpoint gets at the moment it becomes ready."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the gateway is told about balancing, for all services.

    Attributes:
        zone: the gateway's own; empty when unknown, and then no endpoint is nearer than another.
        slow_start_seconds: until a fresh endpoint gets its full share; 0: at once.
        connect_seconds: for a connection to an endpoint to be made.
    """

    zone: str = ""
    slow_start_seconds: float = 10.0
    connect_seconds: float = 1.0


class Candidate(Protocol):
    """What a policy may look at.

    Attributes:
        in_flight: requests of this gateway at the endpoint.
        limit: how many it wants at most.
        incarnation: changes whenever the endpoint comes (back) into service.
    """

    in_flight: int
    limit: int
    incarnation: int

    def warmth(self, now: float) -> float:
        """From nearly 0 when it is fresh to 1, where it stays."""
        ...


C = TypeVar("C", bound=Candidate)
Random = Callable[[], float]


def two_choices(roomy: Sequence[C], excluded: Set[int], now: float, random: Random) -> C | None:
    """The less loaded of two endpoints drawn at random from those with room; None without any.

    Load is in-flight over limit, so a big worker gets its share. Where neither of the two will do,
    the rest is searched from a random start.
    (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.)
    """
    count = len(roomy)
    if count < 2:
        return roomy[0] if count and roomy[0].incarnation not in excluded else None
    # One number draws both: which of all first, and which of the others.
    drawn, others = math.floor(random() * count * (count - 1)), count - 1
    first = drawn // others
    less, more = roomy[first], roomy[first - 1 - drawn % others]
    if more.in_flight * less.limit < less.in_flight * more.limit:
        less, more = more, less
    if less.incarnation not in excluded:
        return less
    if more.incarnation not in excluded:
        return more
    start = int(random() * count)
    for offset in range(count):
        other = roomy[(start + offset) % count]
        if other.incarnation not in excluded:
            return other
    return None


def slow_start(roomy: Sequence[C], excluded: Set[int], now: float, random: Random) -> C | None:
    """Two choices, of which a fresh endpoint passes on more the fresher it is.

    By chance and not by load: where little goes on, nearly all endpoints have a load of nothing.
    What nobody warmer has room for, the fresh one gets.
    """
    chosen = two_choices(roomy, excluded, now, random)
    if chosen is None:
        return None
    warmth = chosen.warmth(now)
    if warmth < 1.0 and random() >= warmth:
        others = excluded | {chosen.incarnation}
        other = two_choices(roomy, others, now, random)
        # Where others would have to wait for each other, warmth is no reason any more.
        if other is not None and 2 * other.in_flight < other.limit and other.warmth(now) > warmth:
            return other
    return chosen


def near_first(
    near: Sequence[C],
    roomy: Sequence[C],
    excluded: Set[int],
    now: float,
    random: Random,
    policy: Callable[[Sequence[C], Set[int], float, Random], C | None] = two_choices,
) -> C | None:
    """One of the gateway's own zone, unless that is half full and one elsewhere is less loaded.

    An endpoint's limit is what it computes at once and as much again; up to half of it nobody
    waits there, and nothing is gained by going further.
    """
    chosen = policy(near, excluded, now, random)
    if chosen is not None and 2 * chosen.in_flight < chosen.limit:
        return chosen
    far = policy(roomy, excluded, now, random)
    if chosen is None or far is None:
        return chosen or far
    return far if far.in_flight * chosen.limit < chosen.in_flight * far.limit else chosen


def within_bound(home: Candidate, load: int, slots: int, now: float) -> bool:
    """Whether ``home`` may take one more request for the sake of its memory.

    Args:
        load, slots: requests at all ready endpoints, and what they can hold.

    (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016; by capacity
    instead of by count. A fresh endpoint is bound to less.)
    """
    fair = LOAD_BOUND * (load + 1) * home.limit / max(1, slots)
    return home.in_flight + 1 <= math.ceil(fair * home.warmth(now))
