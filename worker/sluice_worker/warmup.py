"""Prove that a loaded model computes, and learn what its batches cost, before it is called ready.

``startup`` calls :func:`warm_up` on the thread that loaded the model. The canary units are run
together, then all but the longest again: the answers must be finite and the same, whatever the
neighbours in the batch. The same units on all lanes side by side decide how many lanes there are;
one run per unit seeds the cost model. Some 800 short tokens in all, because a cold start waits.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sluice_worker.cost import CostModel, WideGain, load_of
from sluice_worker.engines.base import Array, Engine, Unit
from sluice_worker.lanes import SetThreads
from sluice_worker.models.errors import ModelRejected

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Relative and absolute; batches of other sizes take other kernels, which round differently."""

LANES_MUST_GAIN = 0.9
"""Narrow lanes are taken unless they are clearly slower: they suffer least from neighbours."""


@dataclass(frozen=True, slots=True)
class Warmth:
    """What the warm-up found.

    Attributes:
        threads: of the processor; ``set_threads`` sets how many of them one batch uses.
        cost: seeded, for the lanes chosen.
        width: how many lanes answer a queue fastest.
        wide: whether a lone batch is better spread over all threads.
    """

    threads: int
    set_threads: SetThreads
    cost: CostModel
    width: int
    wide: WideGain


def warm_up(
    engine: Engine, canary: Sequence[Unit], *, threads: int, set_threads: SetThreads
) -> Warmth:
    """Run the canary. Raises ModelRejected when its answers are not finite or not reproducible."""
    set_threads(threads)
    shorter = canary[:-1] or canary
    first = engine.run(canary)
    wide_seconds, second = _timed(engine, shorter)
    check(first[: len(shorter)], second)
    lanes_gain = wide_gain = 1.0
    if threads > 1:
        wide_seconds, beside_seconds = _compare(engine, shorter, threads, set_threads, wide_seconds)
        lanes_gain = threads * wide_seconds / beside_seconds
        wide_gain = beside_seconds / wide_seconds
    width = threads if lanes_gain > LANES_MUST_GAIN else 1
    cost = CostModel()
    set_threads(threads // width)
    for unit in canary:
        seconds, _ = _timed(engine, (unit,))
        cost.observe(load_of([unit.tokens], engine.computed_tokens([unit.tokens])), seconds)
    set_threads(threads)
    log.info("warm", extra={"lanes": width, "lanes_gain": lanes_gain, "cost": repr(cost)})
    return Warmth(threads, set_threads, cost, width, WideGain(wide_gain))


def check(first: Sequence[Array], second: Sequence[Array]) -> None:
    """Raise ModelRejected unless both are finite and equal within the tolerance."""
    for one, other in zip(first, second, strict=True):
        if not np.isfinite(one).all():
            raise ModelRejected(
                "The model computes numbers that are not finite. Check its weights and its dtype."
            )
        if not np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE):
            raise ModelRejected(
                "The model answers the same input differently each time. Check that it has no "
                "random layers left."
            )


def _compare(
    engine: Engine,
    units: Sequence[Unit],
    threads: int,
    set_threads: SetThreads,
    wide_seconds: float,
) -> tuple[float, float]:
    """Seconds to compute ``units`` on all threads, and on each of them side by side.

    The better of two turns each: what a neighbour on the machine disturbs only ever takes longer.
    """

    def compute(_: int) -> None:
        set_threads(1)
        engine.run(units)

    beside = []
    with ThreadPoolExecutor(threads) as lanes:
        for _ in range(2):
            started = time.monotonic()
            list(lanes.map(compute, range(threads)))
            beside.append(time.monotonic() - started)
            again, _arrays = _timed(engine, units)
            wide_seconds = min(wide_seconds, again)
    return wide_seconds, min(beside)


def _timed(engine: Engine, units: Sequence[Unit]) -> tuple[float, list[Array]]:
    started = time.monotonic()
    arrays = engine.run(units)
    return time.monotonic() - started, arrays
