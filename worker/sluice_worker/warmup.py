"""Prove that a loaded model computes, and learn what its batches cost, before it is called ready.

``startup`` calls :func:`warm_up` on the thread that loaded the model. The canary units are run
together, then all but the longest again: the answers must be finite and the same, whatever the
neighbours in the batch. The same units on all lanes side by side tell what spreading a batch over
all threads gains; one run per unit seeds the cost model. Some 800 tokens, because a start waits.
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

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}
"""Largest difference, as a share of an answer's largest number (or of 1): batches of other sizes
take other kernels, which round differently, and the coarser the numbers, the more so."""


@dataclass(frozen=True, slots=True)
class Warmth:
    """What the warm-up found.

    Attributes:
        threads: of the processor; ``set_threads`` sets how many of them one batch uses.
        cost: seeded, for the lanes chosen.
        wide: how much all threads together gain over one of several side by side.
    """

    threads: int
    set_threads: SetThreads
    cost: CostModel
    wide: WideGain


def warm_up(
    engine: Engine,
    canary: Sequence[Unit],
    *,
    dtype: str,
    threads: int,
    set_threads: SetThreads,
) -> Warmth:
    """Run the canary. Raises ModelRejected when its answers are not finite or not reproducible.

    Args:
        dtype: of the weights, a key of :data:`TOLERANCE`.
    """
    set_threads(threads)
    shorter = canary[:-1] or canary
    first = engine.run(canary)
    wide_seconds, second = _timed(engine, shorter)
    check(comparable(engine, first[: len(shorter)]), comparable(engine, second), TOLERANCE[dtype])
    gain = _gain(engine, shorter, threads, set_threads, wide_seconds) if threads > 1 else 1.0
    cost = CostModel()
    set_threads(1)
    for batch in seeds(engine, canary):
        lengths = [unit.tokens for unit in batch]
        seconds, _ = _timed(engine, batch)
        cost.observe(load_of(lengths, engine.computed_tokens(lengths)), seconds)
    set_threads(threads)
    fields = {
        "threads": threads,
        "wide_gain": gain,
        "batch_ms": cost.overhead_seconds * 1e3,
        "token_us": cost.seconds_per_token * 1e6,
    }
    log.info("warm", extra=fields)
    return Warmth(threads, set_threads, cost, WideGain(gain, threads))


def seeds(engine: Engine, canary: Sequence[Unit]) -> list[Sequence[Unit]]:
    """What the cost model learns first: each length alone, and what a batch of them saves."""
    alone: list[Sequence[Unit]] = [(unit,) for unit in canary]
    # Where steps are shared, single units alone would make a batch look like no gain at all.
    return [*alone, [*canary[:1]] * 8, alone[0]] if engine.stepwise else alone


def comparable(engine: Engine, arrays: Sequence[Array]) -> Sequence[Array]:
    """Step by step, a rounding may turn one token and with it all after it: look at how probable
    the first one is."""
    return [array[..., :1][-1:] for array in arrays] if engine.stepwise else arrays


def check(first: Sequence[Array], second: Sequence[Array], tolerance: float) -> None:
    """Raise ModelRejected unless both are finite and equal within the tolerance."""
    for one, other in zip(first, second, strict=True):
        if not np.isfinite(one).all():
            raise ModelRejected(
                "The model computes numbers that are not finite. Check its weights and its dtype."
            )
        scale = max(1.0, float(np.abs(one).max(initial=0.0)))
        if not np.allclose(one, other, rtol=0.0, atol=tolerance * scale):
            raise ModelRejected(
                "The model answers the same input differently each time. Check that it has no "
                "random layers left."
            )


def _gain(
    engine: Engine,
    units: Sequence[Unit],
    threads: int,
    set_threads: SetThreads,
    wide_seconds: float,
) -> float:
    """Seconds on one thread, beside others that do the same, over seconds on all threads.

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
    return min(beside) / wide_seconds


def _timed(engine: Engine, units: Sequence[Unit]) -> tuple[float, list[Array]]:
    started = time.monotonic()
    arrays = engine.run(units)
    return time.monotonic() - started, arrays
