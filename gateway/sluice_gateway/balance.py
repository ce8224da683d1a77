"""Which endpoint gets the next request: a pure function over a snapshot.

Called by ``admission`` for the oldest waiting request. Adding a policy is adding a function of the
same shape here.
"""

from collections.abc import Callable, Sequence, Set
from typing import Protocol, TypeVar


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

    def has_room(self, now: float) -> bool: ...


C = TypeVar("C", bound=Candidate)


def two_choices(
    ready: Sequence[C], excluded: Set[int], now: float, random: Callable[[], float]
) -> C | None:
    """The less loaded of two endpoints drawn at random; None when none has room.

    Load is in-flight over limit, so a big worker gets its share. Where neither of the two will do,
    the rest is searched from a random start, so room is found whenever there is some.
    (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.)
    """
    count = len(ready)
    if count == 0:
        return None
    index = int(random() * count)
    first = ready[index]
    best = first if _fits(first, excluded, now) else None
    if count > 1:
        second = ready[(index + 1 + int(random() * (count - 1))) % count]
        # The load first: it is cheaper to compare than room is to ask for.
        if (
            best is None or second.in_flight * best.limit < best.in_flight * second.limit
        ) and _fits(second, excluded, now):
            best = second
        if best is None:
            start = int(random() * count)
            for offset in range(count):
                other = ready[(start + offset) % count]
                if _fits(other, excluded, now):
                    return other
    return best


def _fits(candidate: Candidate, excluded: Set[int], now: float) -> bool:
    return candidate.has_room(now) and candidate.incarnation not in excluded
