"""What the scheduler and the network need of a store of keys and values, whichever it is.

A *place* holds the keys and values of one sequence's tokens. Tokens that were computed stay behind
when a place is closed and are found again by later sequences that begin the same, until the room is
needed. Blocks of tokens are known by a chain of hashes: a block's name covers everything before it,
and the salt of its tenant, so nobody can find out what another tenant has asked.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from sluice_worker.engines.decoder.attention import StepAttention


class Opened(NamedTuple):
    """A place for a sequence, in which ``cached`` tokens are there already."""

    place: int
    cached: int


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens that one step adds to one place: positions ``start`` to ``start + count``."""

    place: int
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def positions(self) -> range:
        return range(self.start, self.end)


class Store(Protocol):
    """Owned by the engine's thread. Counts are tokens."""

    @property
    def room(self) -> int:
        """How many tokens it can hold in all, and so one sequence at most."""
        ...

    @property
    def used(self) -> int:
        """Tokens of open places."""
        ...

    def open(self, ids: Sequence[int], salt: bytes) -> Opened | None:
        """A place for a sequence that begins with ``ids``; None while there is none.

        At least one of ``ids`` is always left to compute.
        """
        ...

    def reserve(self, place: int, tokens: int) -> bool:
        """Make room for ``tokens`` tokens in all; False when that would hurt an open place."""
        ...

    def record(self, place: int, ids: Sequence[int], computed: int) -> None:
        """Make the full blocks among the first ``computed`` tokens findable."""
        ...

    def close(self, place: int) -> None:
        """The sequence has ended or must wait; what was recorded may be found again."""
        ...

    def step(self, rows: Sequence[Row]) -> StepAttention:
        """The attention of one packed step, whose tokens come in the order of ``rows``."""
        ...


def block_names(
    ids: Sequence[int], salt: bytes, size: int, known: Sequence[bytes] = ()
) -> Iterator[bytes]:
    """The names of the full blocks of ``ids`` after the ``known`` ones, in order."""
    name = known[-1] if known else hashlib.blake2b(salt, digest_size=16).digest()
    for end in range((len(known) + 1) * size, len(ids) + 1, size):
        block = array("q", ids[end - size : end]).tobytes()
        name = hashlib.blake2b(name + block, digest_size=16).digest()
        yield name


class LayerTensors(NamedTuple):
    """Keys and values of one layer; the shape belongs to the store."""

    keys: Tensor
    values: Tensor
