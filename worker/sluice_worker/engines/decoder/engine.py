"""The engine: one thread that takes sequences, computes step after step, and tells who listens. ★

    commands → drop what has ended → plan → network → choose tokens → tell

Callers submit and cancel from the event loop; nothing else is shared. What a step made is handed
over once a step, by ``on_step``, on the engine's thread. A cancelled sequence takes part in no step
that begins after its cancellation.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sluice_worker.cost import CostModel, Load
from sluice_worker.engines.decoder.network import StepNetwork
from sluice_worker.engines.decoder.sampling import Drawn, choose
from sluice_worker.engines.decoder.scheduler import Scheduler, Work
from sluice_worker.engines.decoder.sequence import Sequence
from sluice_worker.engines.decoder.store import Store

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """Told to the listener of a sequence that was cancelled."""


class Stopped(Exception):
    """Told to listeners when the engine ends before they do."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step was: for whoever counts.

    Attributes:
        sequences: that took part, ended ones included.
        began: monotonic seconds.
        error: what went wrong; its sequences were told.
    """

    sequences: list[Sequence]
    began: float
    seconds: float
    load: Load
    error: Exception | None = None


class DecoderEngine:
    """Owns the thread, the scheduler and the store.

    Args:
        most_running: sequences computed side by side.
        cost: learns from every step; the budget of a step comes from it.
        goal_seconds: how long one step may take.
        on_step: called after each step on the engine's thread.
    """

    name = "decoder"

    def __init__(
        self,
        network: StepNetwork,
        store: Store,
        *,
        most_running: int,
        cost: CostModel,
        goal_seconds: float,
        guesses: bool = True,
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> None:
        self.network = network
        self.store = store
        self.scheduler = Scheduler(store, most_running=most_running, guesses=guesses)
        self.cost = cost
        self.most_running = most_running
        self.on_step = on_step
        self._goal_seconds = goal_seconds
        self._arrived: deque[Sequence] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<DecoderEngine {self.scheduler!r}, {self.store!r}, {self.cost!r}>"

    def start(self, prepare_thread: Callable[[], None] = lambda: None) -> None:
        """Begin; ``prepare_thread`` is called first, on the engine's thread."""
        self._thread = threading.Thread(
            target=self._run, args=(prepare_thread,), name="decoder", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread; listeners of what is unfinished are told."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(self, *sequences: Sequence) -> None:
        """From any thread. The listeners hear of the rest."""
        with self._wake:
            if self._stopping:
                raise Stopped
            self._arrived.extend(sequences)
            self._wake.notify()

    def cancel(self, *sequences: Sequence) -> None:
        """From any thread: take part in no further step."""
        for sequence in sequences:
            sequence.cancelled = True
        with self._wake:
            self._wake.notify()

    # The engine's thread --------------------------------------------------------------------------

    def _run(self, prepare_thread: Callable[[], None]) -> None:
        prepare_thread()
        while True:
            with self._wake:
                while not (self._arrived or self._stopping or self._busy):
                    self._wake.wait()
                while self._arrived:
                    self.scheduler.add(self._arrived.popleft())
                if self._stopping:
                    break
            self.advance()
        scheduler = self.scheduler
        for sequence in (*scheduler.running, *scheduler.waiting):
            sequence.fail(Stopped())

    @property
    def _busy(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    def advance(self) -> Step | None:
        """One step, on the calling thread. None when there was nothing to compute."""
        for sequence in self.scheduler.drop_ended():
            sequence.fail(Cancelled())
        works = self.scheduler.plan(self._budget())
        if not works:
            return None
        step = self._compute(works)
        self.on_step(step)
        return step

    def _budget(self) -> int:
        running = self.scheduler.running
        context = sum(s.computed for s in running) / max(1, len(running))
        return self.cost.budget(context, self._goal_seconds)

    def _compute(self, works: list[Work]) -> Step:
        began = time.monotonic()
        load = load_of(works)
        sequences = [work.sequence for work in works]
        try:
            logits = self._forward(works)
            self._write(works, logits)
            error = None
        except Exception as failure:
            error = failure
            log.exception("a step failed", extra={"sequences": len(works)})
            for sequence in sequences:
                sequence.fail(failure)
        seconds = time.monotonic() - began
        if error is None:
            self.cost.observe(load, seconds)
        for work in works:
            work.sequence.seconds += seconds * len(work.tokens) / load.tokens
        return Step(sequences, began, seconds, load, error)

    def _forward(self, works: list[Work]) -> Tensor:
        ids = [token for work in works for token in work.tokens]
        wanted: list[int] = []
        end = 0
        for work in works:
            end += len(work.tokens)
            if work.writes:
                wanted += range(end - work.guessed - 1, end)
        # A step that only reads needs no logits, but a model's head takes at least one row.
        return self.network.step(self.store, [work.row for work in works], ids, wanted or [end - 1])

    def _write(self, works: list[Work], logits: Tensor) -> None:
        """Take note of what was computed, and have the tokens that follow from it accepted."""
        for work in works:
            sequence = work.sequence
            assert sequence.place is not None
            sequence.computed = work.start + len(work.tokens) - work.guessed
            self.store.record(sequence.place, sequence.ids, sequence.computed)
        writing = [work for work in works if work.writes]
        if not writing:
            float(logits[0, 0])  # A GPU works on by itself; its time must count for this step.
            return
        rows = [work.sequence for work in writing for _ in range(work.guessed + 1)]
        drawn = choose(logits, rows)
        begin = 0
        for work in writing:
            found = drawn[begin : begin + work.guessed + 1]
            begin += work.guessed + 1
            try:
                _accept(work, found)
            except Exception as failure:  # Of its own rules or listener: nobody else may suffer.
                log.warning("a text failed: %s", failure)
                work.sequence.fail(failure)


def _accept(work: Work, drawn: list[Drawn | Exception]) -> None:
    """The first of ``drawn`` comes next; each later one only if the guess before it is right."""
    sequence, guess = work.sequence, work.tokens[len(work.tokens) - work.guessed :]
    right = 0
    for found in () if sequence.cancelled else drawn:
        if isinstance(found, Exception):
            raise found
        sequence.accept(found)
        if sequence.done or right == len(guess) or found.token != guess[right]:
            break
        right += 1
    sequence.computed += right
    if guess:
        sequence.lookup.learn(len(guess), right)


def load_of(works: list[Work]) -> Load:
    """The size of a step: its tokens, and for each how many it looks at."""
    tokens = sum(len(work.tokens) for work in works)
    return Load(tokens, sum(len(work.tokens) * (work.start + len(work.tokens)) for work in works))
