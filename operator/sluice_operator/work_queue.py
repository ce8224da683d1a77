"""The work queue: which services are to be reconciled, each by one worker at a time.

A key that is added twice is done once; one that is added while it is being done is done again.
Failures come back after a growing, jittered pause. ``handlers``, the fleet and ``reconcile``
itself add; only the leader's queue is open, and opening it adds every service.
"""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from sluice_operator.api_errors import ApiError, NotFound, NotLeader, Throttled
from sluice_operator.instruments import Instruments
from sluice_operator.state import Key

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.2
LEAST_PAUSE_SECONDS: Final = 1.0
"""Between an event and another try of a service that fails."""
LONGEST_PAUSE_SECONDS: Final = 60.0

Reconcile = Callable[[Key], Awaitable[float | None]]
"""Does one service; says after how many seconds to look again without an event."""


def pause_seconds(failures: int, chance: float) -> float:
    """How long to wait after so many failures in a row; ``chance`` is from 0 to 1."""
    whole = FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 20)
    return min(LONGEST_PAUSE_SECONDS, whole) * (0.75 + 0.5 * chance)


class WorkQueue:
    """Keys that wait, run, or come back later. Bounded by the number of services."""

    def __init__(self, reconcile: Reconcile, workers: int, instruments: Instruments) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._instruments = instruments
        self._open = False
        self._urgent: OrderedDict[Key, float] = OrderedDict()
        self._ready: OrderedDict[Key, float] = OrderedDict()
        self._running: set[Key] = set()
        self._again: dict[Key, bool] = {}  # added while running; True: urgent
        self._later: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._work = asyncio.Semaphore(0)
        self._quiet = asyncio.Event()
        self._quiet.set()
        instruments.queue_depth.set_function(lambda: len(self))
        instruments.queue_age.set_function(self.age)
        self._chance = random.Random()  # noqa: S311 - spreads retries, guards nothing

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return (
            f"<WorkQueue {state}: {len(self)} waiting, {len(self._running)} running, "
            f"{len(self._later)} later>"
        )

    def __len__(self) -> int:
        return len(self._urgent) + len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs; what comes back later does not count."""
        return not len(self) and not self._running

    def age(self) -> float:
        """Seconds that the first key has waited; 0 when none does."""
        first = [next(iter(lane.values())) for lane in (self._urgent, self._ready) if lane]
        return self._now() - min(first) if first else 0.0

    def open(self, keys: Iterable[Key]) -> None:
        """Begin to work, first on all of ``keys``."""
        self._open = True
        for key in keys:
            self.add(key)

    def close(self) -> None:
        """Forget what waits. What is running goes on until the fence stops it."""
        self._open = False
        for timer in self._later.values():
            timer.cancel()
        for lane in (self._urgent, self._ready, self._again, self._later, self._failures):
            lane.clear()

    def add(self, key: Key, *, after: float = 0.0, urgent: bool = False) -> None:
        """Have ``key`` reconciled; ``urgent`` before those that are not, ``after`` so many seconds.

        The earlier of two wishes wins. Nothing happens while the queue is closed.
        """
        if not self._open:
            return
        if not urgent and key in self._failures:
            # A failing reconcile may itself cause events: they must not undo its pause.
            after = max(after, LEAST_PAUSE_SECONDS)
        if after > 0:
            self._delay(key, after)
        else:
            self._enqueue(key, urgent)

    def _enqueue(self, key: Key, urgent: bool) -> None:
        if timer := self._later.pop(key, None):
            timer.cancel()
        if key in self._running:
            self._again[key] = urgent or self._again.get(key, False)
        elif urgent and key not in self._urgent:
            if self._ready.pop(key, None) is None:
                self._work.release()
            self._urgent[key] = self._now()
        elif key not in self._ready and key not in self._urgent:
            self._ready[key] = self._now()
            self._work.release()

    async def finished(self, seconds: float) -> bool:
        """Wait until nothing runs any more, but not longer; whether that is so."""
        try:
            async with asyncio.timeout(seconds):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work_on(), name=f"reconcile worker {number}")

    async def _work_on(self) -> None:
        while True:
            await self._work.acquire()
            lane = self._urgent or self._ready
            if not lane:
                continue  # what the permit stood for was forgotten by close()
            key, _ = lane.popitem(last=False)
            self._running.add(key)
            self._quiet.clear()
            try:
                await self._do(key)
            finally:
                self._running.discard(key)
                if not self._running:
                    self._quiet.set()
                if (urgent := self._again.pop(key, None)) is not None:
                    self.add(key, urgent=urgent)

    async def _do(self, key: Key) -> None:
        began = self._now()
        try:
            after = await self._reconcile(key)
        except NotLeader:
            outcome = "fenced"  # the next leader does it
        except ApiError as error:
            outcome = "failed"
            least = error.retry_after if isinstance(error, Throttled) else 0.0
            pause = self._fail(key, least)
            # What was deleted meanwhile is no news: its watch event is on the way.
            log.log(
                logging.INFO if isinstance(error, NotFound) else logging.WARNING,
                "reconcile failed",
                extra={"service": str(key), "error": str(error), "retry_seconds": round(pause, 1)},
            )
        except Exception:
            outcome = "broken"
            pause = self._fail(key, 0.0)
            log.exception(
                "reconcile broke", extra={"service": str(key), "retry_seconds": round(pause, 1)}
            )
        else:
            outcome = "done"
            self._failures.pop(key, None)
            if after is not None:
                self.add(key, after=after)
        self._instruments.reconciled(outcome, self._now() - began)

    def _fail(self, key: Key, least: float) -> float:
        if not self._open:
            return 0.0
        self._failures[key] = self._failures.get(key, 0) + 1
        pause = max(least, pause_seconds(self._failures[key], self._chance.random()))
        self._delay(key, pause)
        return pause

    def _delay(self, key: Key, seconds: float) -> None:
        due = self._now() + seconds
        if key in self._ready or key in self._urgent:
            return
        if timer := self._later.get(key):
            if timer.when() <= due:
                return
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._later[key] = loop.call_at(due, self._is_due, key)

    def _is_due(self, key: Key) -> None:
        del self._later[key]
        self._enqueue(key, urgent=False)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
