"""What a demand needs: replicas that carry it, and how long to wait before fewer do. Pure.

Called by ``recommend``, which decides from these figures.
"""

import math

from sluice_operator.scaling.demand import Traffic
from sluice_operator.scaling.rules import Rules

UTILISATION = 0.8
"""How full a replica is planned to be."""
DOWN_UTILISATION = 0.7
"""How full the remaining replicas may be after one has gone."""
DRAIN_SHARE = 0.3
"""How many more replicas a backlog may order than arrivals need."""
HOLD_DOWN_SECONDS = (30.0, 300.0)
"""Least and longest time that demand must have been lower: three cold starts in between."""
IDLE_SECONDS = (60.0, 1800.0)
"""Least and longest keep-alive when ``idleAfter`` is auto."""
IDLE_PER_COLD_START = 10.0
"""Ski rental: keeping a replica may cost as much as the wait it spares, at ten seconds for one."""


def planned_capacity(rules: Rules, measured: float | None, traffic: Traffic) -> float | None:
    """Requests a second of one replica, less where ``target.concurrency`` asks for room."""
    if measured is None or rules.concurrency is None or not traffic.response_seconds:
        return measured
    # Little's law turns a number of requests at once into a rate. Utilisation is divided out,
    # because the target is what a replica should have, not what it could.
    return min(measured, rules.concurrency / traffic.response_seconds / UTILISATION)


def replicas_for(arrivals: float, held: int, capacity: float, drain_seconds: float) -> int:
    """Replicas that carry ``arrivals`` a second with room to spare and drain what is held.

    The drain adds at most as much as the arrivals themselves (or one replica), and may use
    replicas to the full: it passes. For the same reason it orders no more than ``DRAIN_SHARE`` of
    what the arrivals need, or one. ``capacity`` is requests a second of one replica.
    """
    carry = math.ceil(arrivals / (capacity * UTILISATION) - 1e-9)
    drain = min(held / drain_seconds, max(arrivals, capacity))
    both = math.ceil((arrivals + drain) / capacity - 1e-9)
    most = carry + max(1, math.floor(carry * DRAIN_SHARE + 1e-9))
    return max(carry, min(both, most))


def replicas_foreseen(arrivals: float, capacity: float | None, *, asleep: bool) -> int:
    """Replicas for arrivals that are expected; 0 for none.

    While nothing is known of what one does, one has to do; those that run stay as they are.
    """
    if not arrivals:
        return 0
    if capacity is None:
        return 1 if asleep else 0
    return math.ceil(arrivals / (capacity * UTILISATION) - 1e-9)


def down_window(cold_start: float) -> float:
    """Seconds that demand must have been lower before a replica goes."""
    shortest, longest = HOLD_DOWN_SECONDS
    return min(longest, max(shortest, 3 * cold_start))


def worth_waiting(capacity: float | None, cold_start: float) -> float:
    """Seconds for which it pays to keep a replica for demand that comes back.

    Each replica that is missing then has ``capacity * cold_start`` requests wait for half a start
    on average, at ten seconds of an idle replica for one of somebody's waiting.
    """
    if capacity is None:
        return 0.0
    return min(HOLD_DOWN_SECONDS[1], IDLE_PER_COLD_START * capacity * cold_start**2 / 2)


def keep_alive(rules: Rules, cold_start: float) -> float:
    """Seconds without demand before the last replica goes."""
    if rules.idle_after is not None:
        return rules.idle_after
    shortest, longest = IDLE_SECONDS
    return min(longest, max(shortest, IDLE_PER_COLD_START * cold_start))
