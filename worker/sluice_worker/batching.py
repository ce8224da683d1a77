"""The two decisions about order: when a unit is due, and which waiting units run together.

Pure functions over numbers; the queue calls them and carries the result out.
"""

from collections.abc import Sequence
from itertools import accumulate

PATIENCE_SECONDS = 1.0
"""A unit is overtaken only by units that arrive within this time after it (or, inside a list,
after its turn); a longer deadline never means a longer wait than that."""

LOOK_AHEAD = 8
"""A padding engine chooses among this many budgets' worth of tokens."""


def due_times(arrival: float, deadline: float, costs: Sequence[float]) -> list[float]:
    """When each unit of one request is due, in the order of ``costs``; earliest runs first.

    Earliest deadline first, made fair twice: nobody waits for more than :data:`PATIENCE_SECONDS`
    of later arrivals, and the units of a long list fall due one after the other, at the pace at
    which they could be computed, so that a lone request slips in between them.

    Args:
        arrival, deadline: monotonic seconds.
        costs: predicted seconds of each unit.
    """
    return [
        min(deadline, arrival + PATIENCE_SECONDS + before)
        for before in accumulate(costs[:-1], initial=0.0)
    ]


def choose(lengths: Sequence[int], *, budget: int, max_size: int, padded: bool) -> list[int]:
    """Positions of the units that run together; the first, the most urgent, is always among them.

    Args:
        lengths: tokens of the waiting units, most urgent first; at least one.
        budget: tokens a batch may hold as computed; a single unit may exceed it.
        max_size: units a batch may hold.
        padded: the engine computes every unit at the length of the longest.
    """
    if padded:
        return _most_alike(lengths, budget, max_size)
    total = lengths[0]
    chosen = [0]
    for position in range(1, min(len(lengths), max_size)):
        total += lengths[position]
        if total > budget:
            break
        chosen.append(position)
    return chosen


def _most_alike(lengths: Sequence[int], budget: int, max_size: int) -> list[int]:
    """The neighbours in length of the first unit that use most of a padded budget."""
    by_length = sorted(range(len(lengths)), key=lambda position: (lengths[position], position))
    sums = [0, *accumulate(lengths[position] for position in by_length)]
    first = by_length.index(0)
    best = (0, first, first)
    for end in range(first, len(by_length)):
        size = min(max_size, budget // lengths[by_length[end]])
        start = max(0, end - size + 1)
        if start > first:
            if end == first:  # Alone it exceeds the budget, and alone it runs.
                return [0]
            break
        best = max(best, (sums[end + 1] - sums[start], start, end))
    return sorted(by_length[best[1] : best[2] + 1])
