"""One text on its way: what it has so far, how far it is computed, and who listens."""

from dataclasses import dataclass, field
from typing import Protocol

from sluice_api.shapes.generated import FinishReason
from sluice_worker.engines.decoder.lookup import Lookup
from sluice_worker.engines.decoder.sampling import Drawn, Sampler


class Listener(Protocol):
    """Told of every token; called on the engine's thread, so it must be quick."""

    def take(self, drawn: Drawn) -> FinishReason | None:
        """One more token; a reason ends the sequence with it."""
        ...

    def finish(self, reason: FinishReason) -> None:
        """It is over, and nothing more will come."""
        ...

    def fail(self, error: Exception) -> None:
        """It cannot go on, and nothing more will come."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """Made by a caller, owned by the engine from when it is submitted.

    Attributes:
        ids: the prompt, and what was written after it.
        prompt: how many of ``ids`` are the prompt's.
        max_tokens: to write at most.
        stop_ids: each ends the sequence and is not part of the text.
        salt: sequences share computed beginnings only with their like.
        leader: another sequence of the same prompt, after whose prompt this one begins.
        computed: how many of ``ids`` have keys and values in ``place``.
        written: tokens made so far, a final stop token included.
        seconds: of the whole worker, used so far.
        cancelled: set by the event loop; read once a step.
        queued_at, began_at, last_at: for whoever measures; monotonic seconds.
    """

    ids: list[int]
    max_tokens: int
    sampler: Sampler
    listener: Listener
    stop_ids: frozenset[int] = frozenset()
    salt: bytes = b""
    leader: "Sequence | None" = None
    prompt: int = field(init=False)
    computed: int = 0
    cached: int = 0
    written: int = 0
    place: int | None = None
    seconds: float = 0.0
    cancelled: bool = False
    done: bool = False
    lookup: Lookup = field(default_factory=Lookup)
    queued_at: float = 0.0
    began_at: float = 0.0
    last_at: float = 0.0

    def __post_init__(self) -> None:
        self.prompt = len(self.ids)

    def __repr__(self) -> str:
        return f"<Sequence {self.prompt} + {self.written} tokens, {self.computed} computed>"

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self.max_tokens - self.written

    @property
    def waits_for_leader(self) -> bool:
        leader = self.leader
        return leader is not None and not leader.done and not leader.written

    def fail(self, error: Exception) -> None:
        if not self.done:
            self.done = True
            self.listener.fail(error)

    def accept(self, drawn: Drawn) -> None:
        """Take the next token. Sets :attr:`done` with the one that ends it."""
        self.written += 1
        self.ids.append(drawn.token)
        reason: FinishReason | None = None
        if drawn.token in self.stop_ids:
            reason = "stop"
        else:
            reason = self.listener.take(drawn)
            if reason is None and self.sampler.ended:
                reason = "stop"
            if reason is None and self.left <= 0:
                reason = "length"
        if reason is not None:
            self.done = True
            self.listener.finish(reason)
