"""What the next step computes: who may go on, who begins, and who must give way.

Sequences that write come first, a token each, so that nobody who is reading waits; what the step's
budget leaves goes to prompts, in chunks, the oldest first. When the store is full, the youngest
gives its place back and begins again later (Kwon et al. 2023, "recompute"); what it had computed is
usually still found. Only lists are changed here, and no tensor is looked at.
"""

from collections import deque
from dataclasses import dataclass

from sluice_worker.engines.decoder.sequence import Sequence
from sluice_worker.engines.decoder.store import Row, Store

LEAST_CHUNK_TOKENS = 16
"""A prompt advances by this much in every step, however many sequences write."""
GUESSING_TOKENS = 16
"""Guesses are made only in steps of fewer tokens than this: others have no room to spare."""


@dataclass(slots=True)
class Work:
    """What a step does for one sequence: ``tokens`` are fed in from ``start`` on, the last
    ``guessed`` of them guesses; where it ``writes``, the next token follows from them."""

    sequence: Sequence
    start: int
    tokens: list[int]
    guessed: int
    writes: bool

    @property
    def row(self) -> Row:
        assert self.sequence.place is not None
        return Row(self.sequence.place, self.start, len(self.tokens))


class Scheduler:
    """Owned by the engine's thread.

    Args:
        most_running: sequences with a place at once.
        guesses: whether to guess ahead.
    """

    def __init__(self, store: Store, *, most_running: int, guesses: bool = True) -> None:
        self.store = store
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """Oldest first."""
        self.preemptions = 0
        self._most_running = most_running
        self._guesses = guesses

    def __repr__(self) -> str:
        return f"<Scheduler {len(self.running)} running, {len(self.waiting)} waiting>"

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def drop_ended(self) -> list[Sequence]:
        """Take out what is done or cancelled, and return what was cancelled."""
        gone = [s for s in self.running if s.done or s.cancelled]
        for sequence in gone:
            self._close(sequence)
        if gone:
            self.running = [s for s in self.running if not (s.done or s.cancelled)]
        if any(s.cancelled for s in self.waiting):
            gone += [s for s in self.waiting if s.cancelled]
            self.waiting = deque(s for s in self.waiting if not s.cancelled)
        return [sequence for sequence in gone if sequence.cancelled and not sequence.done]

    def plan(self, budget_tokens: int) -> list[Work]:
        """The next step; empty when nothing is to do. Places are opened and closed accordingly."""
        step = self._writing()
        left = max(budget_tokens - len(step), LEAST_CHUNK_TOKENS)
        for sequence in [s for s in self.running if len(s.ids) - s.computed > 1]:
            left -= self._read(sequence, left, step)
        while left > 0 and self._begin():
            left -= self._read(self.running[-1], left, step)
        if self._guesses and sum(len(work.tokens) for work in step) < GUESSING_TOKENS:
            self._guess(step)
        return step

    def _writing(self) -> list[Work]:
        """A token for each sequence that has only its newest one to compute."""
        step: list[Work] = []
        for sequence in list(self.running):
            if sequence.place is None or len(sequence.ids) - sequence.computed != 1:
                continue
            if self._make_room(sequence, len(sequence.ids)):
                step.append(Work(sequence, sequence.computed, sequence.ids[-1:], 0, True))
        # A victim may have been given work before its turn to give way came.
        return [work for work in step if work.sequence.place is not None]

    def _read(self, sequence: Sequence, most: int, step: list[Work]) -> int:
        """Compute a chunk of a prompt; how many tokens that are."""
        start = sequence.computed
        count = min(most, len(sequence.ids) - start)
        if count <= 0 or sequence.place is None:
            return 0
        tokens = sequence.ids[start : start + count]
        step.append(Work(sequence, start, tokens, 0, start + count == len(sequence.ids)))
        return count

    def _begin(self) -> bool:
        """Open a place for the sequence that has waited longest, if there is room."""
        if len(self.running) >= self._most_running:
            return False
        sequence = next((s for s in self.waiting if not s.waits_for_leader), None)
        if sequence is None:
            return False
        # Room for its text and a little more: who begins must not give way at once.
        wanted = min(len(sequence.ids) + LEAST_CHUNK_TOKENS, self.store.room)
        if self.running and self.store.used + wanted > self.store.room:
            return False
        opened = self.store.open(sequence.ids, sequence.salt)
        if opened is None:
            return False
        if not self.store.reserve(opened.place, len(sequence.ids)):
            self.store.close(opened.place)
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.place, sequence.computed = opened
        sequence.cached += opened.cached
        return True

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Have the youngest give way until ``sequence`` has room, or gives way itself."""
        assert sequence.place is not None
        while not self.store.reserve(sequence.place, tokens):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self._close(sequence)
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)

    def _close(self, sequence: Sequence) -> None:
        if sequence.place is not None:
            self.store.close(sequence.place)
        sequence.place, sequence.computed = None, 0

    def _guess(self, step: list[Work]) -> None:
        spare = GUESSING_TOKENS - sum(len(work.tokens) for work in step)
        for work in step:
            sequence = work.sequence
            if not work.writes or not sequence.sampler.plain:
                continue
            guess = sequence.lookup.guess(sequence.ids, min(spare, sequence.left - 1))
            assert sequence.place is not None
            if guess and self.store.reserve(sequence.place, len(sequence.ids) + len(guess)):
                work.tokens = work.tokens + guess
                work.guessed = len(guess)
                spare -= len(guess)
