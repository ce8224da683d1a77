"""When the requests of an open loop are due, on a machine that stands still now and then.

Whoever sends them waits for nobody, so being late by more than a moment says that it stood still,
and all it asks with it. What would have come meanwhile is left out: sent at once, it would be a
burst that the test has not asked for.
"""

STANDSTILL_SECONDS = 1.0


def left_out(due: float, now: float) -> float:
    """Seconds by which a loop that is at ``due`` must be put off to go on from ``now``."""
    late = now - due
    return late if late > STANDSTILL_SECONDS else 0.0
