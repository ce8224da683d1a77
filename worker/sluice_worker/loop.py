"""The main path of a worker: admit, queue, batch, compute, deliver. ★

An accepted request becomes a job; its units wait in the queue; whenever a lane is free and work is
waiting, the most urgent units that fit the budget start. There is no window timer: a lone request
never waits, and while every lane is busy the next batch forms by itself.

Everything but the computing happens on the event loop's thread and decides without waiting, so no
state needs a lock. ``intake`` calls :meth:`Loop.admit`, :meth:`Loop.submit` and
:meth:`Loop.abandon`.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sluice_api.errors import ApiError
from sluice_api.wire import Capacity
from sluice_worker import batching
from sluice_worker.admission import Reservation, Reserved, judge, overloaded
from sluice_worker.backlog import Backlog, Entry, Job
from sluice_worker.cost import Average, CostModel, Load, WideGain, load_of
from sluice_worker.engines.base import Unit
from sluice_worker.lanes import Joinable, Lanes, Outcome
from sluice_worker.lifecycle import Progress
from sluice_worker.metrics import Metrics

if TYPE_CHECKING:
    from sluice_worker.engines.base import Array

log = logging.getLogger(__name__)

MAX_WAITING_UNITS = 65_536
"""Memory bound beside the bound in seconds, for models so fast that seconds bound nothing."""


MAX_BATCH_TOKENS = 16_384
"""Memory bound of a batch that is bounded by its units, not by its tokens."""


JOINING_SECONDS = 30.0
"""So long others may join a batch. Then it comes to its end, and what it took is learnt."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the service asks of its batches.

    Attributes:
        latency_goal_seconds: how long one batch may take.
        max_size: units in one batch.
        max_backlog_seconds: predicted wait beyond which requests are refused.
    """

    latency_goal_seconds: float
    max_size: int
    max_backlog_seconds: float


@dataclass(slots=True, eq=False)
class Running:
    """A batch on a lane.

    Attributes:
        entries: all that were ever in it; a unit's place is its place here.
        left: places of the units whose result is not there yet.
        since: when each unit came into it.
        joinable: lets more units in while it runs; None where that cannot be.
    """

    entries: list[Entry]
    load: Load
    wide: bool
    started: float
    predicted_seconds: float
    left: set[int] = field(default_factory=set)
    since: list[float] = field(default_factory=list)
    joinable: Joinable | None = None

    def remaining_seconds(self, now: float) -> float:
        """Predicted, of one lane."""
        if self.joinable is not None:
            return sum(self.entries[place].cost_seconds for place in self.left)
        return max(0.0, self.started + self.predicted_seconds - now)


class Loop:
    """Owns the queue, the lanes and the cost model of one loaded model.

    Args:
        proof: a unit that was computed before. A unit that fails may be at fault itself, by its
            input or its parameters; only when this one fails as well, the engine is.
    """

    def __init__(
        self,
        lanes: Lanes,
        cost: CostModel,
        wide: WideGain,
        rules: Rules,
        metrics: Metrics,
        progress: Progress,
        *,
        proof: Unit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lanes = lanes
        self.cost = cost
        self.wide = wide
        self.rules = rules
        self.metrics = metrics
        self.progress = progress
        self.backlog = Backlog()
        self.running: list[Running] = []
        self.requests = 0
        """Being answered now, tokenising and rendering included; counted by the intake."""
        self.reserved = Reserved()
        self.unit_tokens = Average(32.0)
        self.job_units = Average(1.0)
        self._padded = lanes.engine.computed_tokens((1, 2)) > 3
        self._proof = replace(proof, key=b"proof")
        self._clock = clock
        self._learnt_at = clock()
        self._dispatch_due = False

    def __repr__(self) -> str:
        return f"<Loop {self.requests} requests, {self.backlog!r}, {self.lanes!r}, {self.cost!r}>"

    # admitting ---------------------------------------------------------------------------------

    def predicted_wait(self, now: float) -> float:
        """Seconds until everything that was accepted is computed."""
        ahead = self.backlog.cost_seconds + self.reserved.seconds
        for batch in self.running:
            share = self.lanes.share(batch.wide)
            ahead += batch.remaining_seconds(now) * share * self.lanes.width
        return ahead / self.lanes.width

    def admit(self, tokens: int, units: int, deadline: float) -> Reservation:
        """Decide at once whether a request may come in, and set its predicted work aside.

        Args:
            tokens, units: estimates, because the texts are not tokenised yet; at least 1.
            deadline: monotonic seconds.
        Raises:
            ApiError: ``overloaded`` with the predicted wait, or ``deadline_exceeded`` when even
                an idle worker would need longer than the caller waits.
        """
        seconds = units * self.cost.unit_seconds(max(1, tokens // units), self.budget())
        self._judge(seconds, units, deadline)
        return self.reserved.hold(seconds)

    def _judge(self, seconds: float, units: int, deadline: float) -> None:
        now = self._clock()
        own = seconds / self.lanes.width
        # Units of a long list that fall due after the newcomer's last do not hold it up.
        due = min(deadline, now + batching.PATIENCE_SECONDS + own)
        wait = self.predicted_wait(now) - self.backlog.later_than(due) / self.lanes.width
        try:
            judge(
                wait=max(0.0, wait),
                own=own,
                left=deadline - now,
                max_backlog=self.rules.max_backlog_seconds,
                quiet=0.0 if self.running else now - self._learnt_at,
            )
            if self.backlog.waiting and self.backlog.waiting + units > MAX_WAITING_UNITS:
                raise overloaded(self.predicted_wait(now))
        except ApiError as error:
            self.metrics.refused.labels(error.code).inc()
            raise

    def budget(self) -> int:
        """Tokens the next batch may hold; where steps are shared, those of a full batch."""
        if self.lanes.engine.stepwise:
            return round(self.rules.max_size * self.unit_tokens.value)
        return self.cost.budget(self.unit_tokens.value, self.rules.latency_goal_seconds)

    def capacity(self) -> Capacity:
        """How many requests this worker wants: what it runs plus one batch."""
        batch_units = min(self.rules.max_size, max(1.0, self.budget() / self.unit_tokens.value))
        batch_jobs = batch_units / max(1.0, self.job_units.value)
        limit = math.ceil((self.lanes.width + 1) * batch_jobs)
        return Capacity(
            limit=max(self.lanes.width + 1, limit),
            in_flight=self.requests,
            backlog_seconds=self.predicted_wait(self._clock()),
        )

    # queueing ----------------------------------------------------------------------------------

    def submit(self, units: Sequence[Unit], deadline: float) -> Job:
        """Queue the units of a request, of which there is at least one.

        The caller awaits ``job.done`` and, if it stops waiting before that, abandons the job.
        Raises ApiError as :meth:`admit` does, now that the work is known exactly.
        """
        budget = self.budget()
        costs = [self.cost.unit_seconds(unit.tokens, budget) for unit in units]
        self._judge(sum(costs), len(units), deadline)
        now = self._clock()
        dues = batching.due_times(now, deadline, [cost / self.lanes.width for cost in costs])
        job = Job(len(units), deadline, asyncio.get_running_loop().create_future())
        self.backlog.add(job, units, costs, dues, now)
        self.job_units.add(len(units))
        if self.progress.waiting_since is None:
            self.progress.waiting_since = now
        self._dispatch_soon()
        return job

    def abandon(self, job: Job) -> None:
        """The caller of ``job`` has gone: what only it wanted is skipped."""
        self.backlog.abandon(job)
        job.done.cancel()
        if not self.backlog.waiting and not self.running:
            self.progress.waiting_since = None

    # computing ---------------------------------------------------------------------------------

    def _dispatch_soon(self) -> None:
        # At the end of this turn of the event loop: requests that arrived together run together,
        # and a lone one has waited for nothing.
        if not self._dispatch_due:
            self._dispatch_due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Start a batch on every free lane for which work is waiting."""
        self._dispatch_due = False
        while self.lanes.available and self.backlog.waiting:
            if not self.lanes.idle and self.wide.pays(self.lanes.width):
                break  # all threads together are best even for a queue: once the others end
            entries = self.backlog.take(
                # Whatever shares the steps of a batch is written at hardly any further cost.
                budget=MAX_BATCH_TOKENS if self.lanes.engine.stepwise else self.budget(),
                max_size=self.rules.max_size,
                padded=self._padded,
            )
            rivals = self.lanes.width if self.backlog.waiting else 1
            self._start(entries, wide=self.lanes.idle and self.wide.choose(rivals))
        for batch in self.running:
            self._fill(batch)

    def _fill(self, batch: Running) -> None:
        """Let waiting units join a batch under way, while it is young and has room."""
        now = self._clock()
        while (
            batch.joinable is not None
            and self.backlog.waiting
            and len(batch.left) < self.rules.max_size
            and now - batch.started < JOINING_SECONDS
        ):
            [entry] = self.backlog.take(budget=1, max_size=1, padded=False)
            if entry.alone or not batch.joinable.offer(entry.unit):
                self.backlog.put_back(entry)
                return
            batch.left.add(len(batch.entries))
            batch.entries.append(entry)
            self._entered(batch, entry, now)

    def _entered(self, batch: Running, entry: Entry, now: float) -> None:
        batch.since.append(now)
        self.unit_tokens.add(entry.unit.tokens)
        self.metrics.queue_seconds.observe(now - entry.queued_at)

    def _start(self, entries: list[Entry], *, wide: bool) -> None:
        now = self._clock()
        lengths = [entry.unit.tokens for entry in entries]
        computed = self.lanes.engine.computed_tokens(lengths)
        load = load_of(lengths, computed)
        batch = Running(entries, load, wide, now, self.cost.predict(load))
        batch.left.update(range(len(entries)))
        self.running.append(batch)
        for entry in entries:
            self._entered(batch, entry, now)
        units = [entry.unit for entry in entries]
        if self.lanes.engine.stepwise and not entries[0].alone:
            batch.joinable = Joinable(units, lambda place, one: self._finished(batch, place, one))
        self.metrics.padding.inc(computed - sum(lengths))
        self.metrics.batch_tokens.observe(sum(lengths))
        self.lanes.start(
            units,
            wide=wide,
            on_done=lambda outcome: self._settle(batch, outcome),
            joinable=batch.joinable,
        )

    def _finished(self, batch: Running, place: int, array: "Array") -> None:
        """Deliver one unit of a batch that goes on, and let another take its place."""
        now, entry = self._clock(), batch.entries[place]
        share = self.lanes.share(batch.wide) / len(batch.left)
        batch.left.discard(place)
        self._hand_out(entry, array, (now - batch.since[place]) * share)
        self.progress.waiting_since = now
        self.progress.failures_in_a_row = 0
        self._fill(batch)

    def _settle(self, batch: Running, outcome: Outcome) -> None:
        """Deliver a finished batch and start the next one."""
        self.running.remove(batch)
        self.metrics.batch_seconds.observe(outcome.seconds)
        if outcome.error is None:
            self._learn(batch, outcome)
            if batch.joinable is None:
                self._deliver(batch, outcome)
            self.progress.failures_in_a_row = 0
        else:
            self._fail(batch, outcome.error)
        busy = self.backlog.waiting or self.running
        self.progress.waiting_since = self._clock() if busy else None
        self._dispatch()

    def _learn(self, batch: Running, outcome: Outcome) -> None:
        self._learnt_at = self._clock()
        if batch.joinable is not None:
            if not all(entry.waiters for entry in batch.entries):
                return  # What its callers left is not computed to its end.
            lengths = [entry.unit.tokens for entry in batch.entries]
            batch.load = load_of(lengths, self.lanes.engine.computed_tokens(lengths))
        # Predictions are about a queue, and a queue is answered by narrow lanes.
        if self.lanes.width == 1 or not batch.wide:
            self.cost.observe(batch.load, outcome.seconds)
        else:
            self.wide.observe(self.cost.predict(batch.load), outcome.seconds)

    def _deliver(self, batch: Running, outcome: Outcome) -> None:
        whole = sum(entry.cost_seconds for entry in batch.entries) or 1.0
        seconds = outcome.seconds * self.lanes.share(batch.wide)
        for entry, array in zip(batch.entries, outcome.arrays, strict=True):
            self._hand_out(entry, array, seconds * entry.cost_seconds / whole)

    def _hand_out(self, entry: Entry, array: "Array", seconds: float) -> None:
        """Give a result to all who wait for it; they share the seconds it took."""
        self.backlog.finish(entry)
        for waiter in entry.waiters:
            waiter.job.deliver(waiter.position, array, seconds / len(entry.waiters))

    def _fail(self, batch: Running, error: Exception) -> None:
        """Run the units of a failed batch again one by one; fail the one that fails alone."""
        first = batch.entries[0]
        if first.unit is self._proof:
            self.backlog.finish(first)
            self.progress.failures_in_a_row += 1
            log.error(
                "the engine is at fault",
                exc_info=error,
                extra={"in_a_row": self.progress.failures_in_a_row},
            )
            return
        log.error("a batch failed", exc_info=error, extra={"units": len(batch.entries)})
        left = [batch.entries[place] for place in sorted(batch.left)]
        again = [entry for entry in left if entry.waiters] if len(batch.entries) > 1 else []
        for entry in again:
            self.backlog.again(entry)
        if again:
            return
        for entry in left:
            self.backlog.finish(entry)
            for waiter in entry.waiters:
                waiter.job.fail(ApiError("internal_error", "The model failed on this input."))
                self.backlog.abandon(waiter.job)
        self._prove()

    def _prove(self) -> None:
        """Have the proof computed by itself, unless it is about to be."""
        now = self._clock()
        cost = self.cost.unit_seconds(self._proof.tokens, self.budget())
        job = Job(1, math.inf, asyncio.get_running_loop().create_future())
        self.backlog.add(job, [self._proof], [cost], [now], now)
        job.entries[0].alone = True
