"""What the loop needs of an engine: units in, one array per unit out.

An engine knows tensors and no HTTP; the loop knows queues and no tensors; a task knows both ends
of a text and neither of the others.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Unit:
    """One forward pass of one text: what is queued, counted and batched.

    Attributes:
        ids: token ids, special tokens included.
        type_ids: token type ids, same length, or None where all are 0.
        key: what identifies the computation; units with equal keys in the queue are computed once.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...] | None
    key: bytes

    @property
    def tokens(self) -> int:
        """What the unit counts for in batches, budgets and predictions."""
        return len(self.ids)

    def withdraw(self) -> None:
        """Nobody waits for the result any more: a unit that takes many steps takes no more."""


def unit_of(ids: tuple[int, ...], type_ids: tuple[int, ...] | None) -> Unit:
    """A unit whose key is exactly its content, so that equal work is recognised as such."""
    if type_ids is None:
        return Unit(ids, None, b"p" + array("i", ids).tobytes())
    return Unit(ids, type_ids, b"t" + array("i", ids).tobytes() + bytes(type_ids))


class Feed(Protocol):
    """Units for a batch that others may join while it runs. Called on the thread that computes."""

    def take(self) -> Sequence[tuple[int, Unit]]:
        """What has come since the last call, each with its place."""
        ...

    def finish(self, place: int, array: Array) -> None:
        """Hand out the result of the unit at ``place``."""
        ...

    def close(self) -> bool:
        """Whether nothing has come and nothing will: then the batch is over."""
        ...


class Engine(Protocol):
    """Runs one batch at a time, on the calling thread. Thread-safe across lanes."""

    name: str
    """For metrics: ``packed``, ``padded`` or ``seq2seq``."""

    stepwise: bool
    """A batch runs step by step, and a step costs nearly the same for one unit as for many."""

    def run(self, units: Sequence[Unit]) -> list[Array]:
        """One float32 array per unit, in order.

        A pooled sentence vector ``[hidden]`` for embeddings, logits ``[labels]`` for classifiers
        of texts, ``[tokens, logits]`` for what is said of each token, ``[masks, vocabulary]`` for
        what stands behind masks (``engines.reading``).
        """
        ...

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        """Tokens really computed for a batch of these lengths, padding included."""
        ...


class StepwiseEngine(Engine, Protocol):
    """An engine whose batches others may join."""

    def serve(self, feed: Feed) -> None:
        """Run what ``feed`` gives, on the calling thread, until it gives no more."""
        ...
