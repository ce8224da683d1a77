"""What waits for a lane: the units of every accepted request, and who wants each result.

Owned by the loop, touched on the event loop's thread only, so nothing here is locked. Equal units
are computed once: a unit that is already waiting or running gets one more waiter instead.
"""

import asyncio
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sluice_worker import batching

if TYPE_CHECKING:
    from sluice_worker.engines.base import Array, Unit


class Job:
    """One request's units on their way, gathered into one future.

    Attributes:
        done: resolves to the arrays of the units, in order; fails with the first failure.
        service_seconds: seconds of the whole worker used so far.
    """

    __slots__ = ("_arrays", "_missing", "deadline", "done", "entries", "service_seconds")

    def __init__(self, count: int, deadline: float, done: "asyncio.Future[list[Array]]") -> None:
        self.deadline = deadline
        self.done = done
        self.entries: list[Entry] = []
        self.service_seconds = 0.0
        self._arrays: list[Array | None] = [None] * count
        self._missing = count

    def __repr__(self) -> str:
        return f"<Job {self._missing} of {len(self._arrays)} units missing>"

    def deliver(self, position: int, array: "Array", seconds: float) -> None:
        """Take the result of one unit; the last one resolves :attr:`done`."""
        self.service_seconds += seconds
        self._arrays[position] = array
        self._missing -= 1
        if self._missing == 0 and not self.done.done():
            self.done.set_result([array for array in self._arrays if array is not None])

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Waiter(NamedTuple):
    """The place in a job that a result belongs to."""

    job: Job
    position: int


@dataclass(slots=True, eq=False)
class Entry:
    """One unit, waiting or running, and everybody who wants its result.

    Attributes:
        cost_seconds: predicted when it was queued; what the backlog counts for it.
        alone: it was in a batch that failed, and runs by itself so as to hurt nobody else.
    """

    unit: "Unit"
    cost_seconds: float
    due: float
    sequence: int
    queued_at: float
    waiters: list[Waiter] = field(default_factory=list)
    alone: bool = False
    waiting: bool = True


@dataclass(slots=True)
class _Slice:
    """What is due within one slice of time."""

    units: int = 0
    seconds: float = 0.0


_SLICE_SECONDS = 0.1
"""Cost is summed by slices of due time this wide."""


class Backlog:
    """The waiting units by due time, their summed cost, and the index for computing once."""

    def __init__(self) -> None:
        self._slices: dict[int, _Slice] = {}
        self._latest = 0
        self._heap: list[tuple[float, int, Entry]] = []
        self._by_key: dict[bytes, Entry] = {}
        self._sequence = 0
        self.waiting = 0
        self.cost_seconds = 0.0

    def __repr__(self) -> str:
        return f"<Backlog {self.waiting} units waiting, {self.cost_seconds:.3f} s of work>"

    def __len__(self) -> int:
        return self.waiting

    def add(
        self,
        job: Job,
        units: Sequence["Unit"],
        costs: Sequence[float],
        dues: Sequence[float],
        now: float,
    ) -> None:
        """Queue the units of ``job``; the sequences run in parallel."""
        for position, (unit, cost, due) in enumerate(zip(units, costs, dues, strict=True)):
            entry = self._by_key.get(unit.key)
            if entry is None:
                self._sequence += 1
                entry = Entry(unit, cost, due, self._sequence, now)
                self._by_key[unit.key] = entry
                self._push(entry)
            elif entry.waiting and due < entry.due:
                # The old place in the heap stays behind and is passed over when it comes up.
                self._account(entry, -1)
                entry.due = due
                self._account(entry, 1)
                self._place(entry)
            entry.waiters.append(Waiter(job, position))
            job.entries.append(entry)

    def take(self, *, budget: int, max_size: int, padded: bool) -> list[Entry]:
        """Remove and return the next batch, the most urgent unit in it; empty when none waits."""
        window = list(self._window(budget * batching.LOOK_AHEAD if padded else budget))
        if not window:
            return []
        if window[0].alone:
            chosen = [0]
        else:
            together = [place for place, entry in enumerate(window) if not entry.alone]
            lengths = [window[place].unit.tokens for place in together]
            chosen = [
                together[position]
                for position in batching.choose(
                    lengths, budget=budget, max_size=max_size, padded=padded
                )
            ]
        taken = set(chosen)
        for place, entry in enumerate(window):
            if place in taken:
                self._leave(entry)
            else:
                self._place(entry)
        return [window[place] for place in chosen]

    def again(self, entry: Entry) -> None:
        """Put a unit whose batch failed back in its place, to run alone."""
        entry.alone = True
        self.put_back(entry)

    def put_back(self, entry: Entry) -> None:
        """Put a unit that was taken and not computed back in its place."""
        entry.waiting = True
        self._push(entry)

    def finish(self, entry: Entry) -> None:
        """Forget a unit whose result is known; an equal one would be computed anew."""
        if self._by_key.get(entry.unit.key) is entry:
            del self._by_key[entry.unit.key]

    def abandon(self, job: Job) -> None:
        """Nobody waits for ``job`` any more: units that only it wanted are not computed."""
        for entry in job.entries:
            entry.waiters = [waiter for waiter in entry.waiters if waiter.job is not job]
            if not entry.waiters:
                if entry.waiting:
                    self._leave(entry)
                entry.unit.withdraw()
                self.finish(entry)  # An equal unit must not join one that may end early.

    def later_than(self, due: float) -> float:
        """Seconds of waiting work that a unit due at ``due`` would be computed before.

        Usually nothing is due later than a newcomer, and nothing is looked at; behind a long list
        it takes a look at each tenth of a second of it.
        """
        first = int(due / _SLICE_SECONDS) + 1
        return sum(
            self._slices[number].seconds
            for number in range(first, self._latest + 1)
            if number in self._slices
        )

    def _push(self, entry: Entry) -> None:
        self.waiting += 1
        self.cost_seconds += entry.cost_seconds
        self._place(entry)
        self._account(entry, 1)

    def _account(self, entry: Entry, sign: int) -> None:
        number = int(entry.due / _SLICE_SECONDS)
        part = self._slices.setdefault(number, _Slice())
        part.units += sign
        part.seconds += sign * entry.cost_seconds
        if not part.units:
            del self._slices[number]
        self._latest = max(self._latest, number) if self._slices else 0

    def _place(self, entry: Entry) -> None:
        heapq.heappush(self._heap, (entry.due, entry.sequence, entry))

    def _leave(self, entry: Entry) -> None:
        entry.waiting = False
        self._account(entry, -1)
        self.waiting -= 1
        # Sums of floats drift; an empty queue holds no work, exactly.
        self.cost_seconds = self.cost_seconds - entry.cost_seconds if self.waiting else 0.0

    def _window(self, tokens: int) -> Iterator[Entry]:
        """Pop the most urgent waiting units until they hold more than ``tokens``."""
        total = 0
        seen: set[int] = set()
        while self._heap and total <= tokens:
            due, _, entry = heapq.heappop(self._heap)
            if entry.waiting and due == entry.due and id(entry) not in seen:
                seen.add(id(entry))
                total += entry.unit.tokens
                yield entry
