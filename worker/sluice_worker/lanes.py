"""The threads that compute: one batch each at a time, on one or on all of the processor's cores.

Lanes of one thread side by side answer a queue faster than one lane with all threads, but a batch
that is alone may be answered sooner by all threads together. OpenMP keeps its thread count per
calling thread, so a lane can do either, batch by batch. The loop decides; nothing here chooses.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np

from sluice_worker.engines.base import Array, Engine, StepwiseEngine, Unit

SetThreads = Callable[[int], None]
"""Set how many threads the calling thread computes with."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished batch: its arrays, or what went wrong, and how long it took."""

    arrays: list[Array]
    error: Exception | None
    seconds: float


class Joinable:
    """A batch under way that more units may join; implements :class:`engines.base.Feed`.

    The event loop calls :meth:`offer`, the lane all else.

    Args:
        deliver: called on the event loop with place and result of each unit.
    """

    def __init__(self, units: Sequence[Unit], deliver: Callable[[int, Array], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._lock = threading.Lock()
        self._fresh = list(enumerate(units))
        self._count = len(units)
        self._closed = False

    def __repr__(self) -> str:
        return f"<Joinable {self._count} units so far{', closed' if self._closed else ''}>"

    def offer(self, unit: Unit) -> bool:
        """Let ``unit`` join, in the next place; False when the batch is over."""
        with self._lock:
            if not self._closed:
                self._fresh.append((self._count, unit))
                self._count += 1
            return not self._closed

    def take(self) -> list[tuple[int, Unit]]:
        with self._lock:
            fresh, self._fresh = self._fresh, []
        return fresh

    def finish(self, place: int, array: Array) -> None:
        _check_finite(array)
        self._loop.call_soon_threadsafe(self._deliver, place, array)

    def close(self) -> bool:
        with self._lock:
            self._closed = self._closed or not self._fresh
            return self._closed

    def abort(self) -> None:
        """Nothing joins any more: the batch failed."""
        with self._lock:
            self._closed = True


class Lanes:
    """``width`` narrow lanes of one thread each, or all of them as one wide lane.

    Args:
        threads: of the processor, to be shared by the lanes.
        width: how many batches may run side by side; 1 means every batch is wide.
    """

    def __init__(
        self, engine: Engine, *, threads: int, width: int, set_threads: SetThreads
    ) -> None:
        self.engine = engine
        self.threads = threads
        self.width = width
        self._set_threads = set_threads
        # One executor a lane, not one for all: the first lane's OpenMP team is the only wide one.
        self._executors = [
            ThreadPoolExecutor(1, thread_name_prefix=f"lane-{number}") for number in range(width)
        ]
        self._free = list(reversed(range(width)))
        self._wide = False

    def __repr__(self) -> str:
        kind = "wide" if self._wide else "narrow"
        return f"<Lanes {self.width - len(self._free)} of {self.width} busy, {kind}>"

    @property
    def available(self) -> bool:
        """Another batch may start now."""
        return bool(self._free) and not self._wide

    @property
    def idle(self) -> bool:
        return len(self._free) == self.width

    def share(self, wide: bool) -> float:
        """The part of the whole worker that a batch occupies."""
        return 1.0 if wide else 1.0 / self.width

    def start(
        self,
        units: Sequence[Unit],
        *,
        wide: bool,
        on_done: Callable[[Outcome], None],
        joinable: Joinable | None = None,
    ) -> None:
        """Run a batch; ``on_done`` is called on the event loop. Needs :attr:`available`.

        Args:
            wide: use all threads; only while :attr:`idle`, and no other batch starts meanwhile.
            joinable: takes the results one by one, and gives the units in place of ``units``.
        """
        lane = self._free.pop()
        self._wide = wide
        threads = self.threads if wide else max(1, self.threads // self.width)
        running = asyncio.get_running_loop().run_in_executor(
            self._executors[lane], self.compute, units, threads, joinable
        )

        def release(finished: "asyncio.Future[Outcome]") -> None:
            self._wide = False
            self._free.append(lane)
            self._free.sort(reverse=True)
            if not finished.cancelled():  # as it is only when the process ends
                on_done(finished.result())

        running.add_done_callback(release)

    def compute(
        self, units: Sequence[Unit], threads: int, joinable: Joinable | None = None
    ) -> Outcome:
        """Run one batch on the calling thread. Never raises."""
        self._set_threads(threads)
        started = time.monotonic()
        try:
            if joinable is not None:
                cast(StepwiseEngine, self.engine).serve(joinable)
                return Outcome([], None, time.monotonic() - started)
            arrays = self.engine.run(units)
            if len(arrays) != len(units):
                raise ValueError(f"{len(arrays)} arrays for {len(units)} units")
            for array in arrays:
                _check_finite(array)
        except Exception as error:
            if joinable is not None:
                joinable.abort()
            return Outcome([], error, time.monotonic() - started)
        return Outcome(arrays, None, time.monotonic() - started)

    def close(self) -> None:
        """End the threads once their batches are done; does not wait for them."""
        for executor in self._executors:
            executor.shutdown(wait=False, cancel_futures=True)


def _check_finite(array: Array) -> None:
    if not np.isfinite(array).all():
        raise FloatingPointError("the model computed a number that is not finite")
