"""How one text is generated, settled before anything runs, and how the result is read.

Tasks make a :class:`Decoding` from the model's defaults and the call's parameters and put it into
a :class:`GenerationUnit`; the engine obeys it and answers with an array that :func:`read` takes
apart. Imports no torch, because tasks are built while torch is still being imported.
"""

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from sluice_worker.engines.base import Array, Unit


@dataclass(frozen=True, slots=True)
class Sampling:
    """Draw tokens instead of taking the most probable one.

    Attributes:
        top_k: only this many of the most probable tokens; 0 for all.
        top_p: only the most probable tokens that make up this share; 1 for all.
        seed: of the random numbers; None for others each time.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """The rules of one generation. Names and meanings follow transformers' GenerationConfig.

    Attributes:
        start: the decoder's first token, which is given and not part of the result.
        ends: tokens that end the text; one of them is the result's last token, or it was cut.
        most, least: new tokens, the ending one included.
        forced_first, forced_last: the first new token; what the ``most``-th must be.
        never: sequences of tokens that must not appear.
        suppressed, suppressed_first: tokens that are never chosen, or not as the first one.
        renormalized: what the rules leave are probabilities again, which beams are compared by.
    """

    start: int
    ends: tuple[int, ...]
    most: int
    least: int = 0
    beams: int = 1
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    encoder_repetition_penalty: float = 1.0
    encoder_no_repeat_ngram: int = 0
    forced_first: int | None = None
    forced_last: tuple[int, ...] = ()
    never: tuple[tuple[int, ...], ...] = ()
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    renormalized: bool = False
    sampling: Sampling | None = None


class Stop:
    """Set on the event loop, read by the engine before every step."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False

    def __repr__(self) -> str:
        return f"<Stop {'asked' if self.asked else 'not asked'}>"


@dataclass(frozen=True, slots=True)
class GenerationUnit(Unit):
    """One text to be read and one to be written.

    Attributes:
        expected: new tokens that are likely, all beams together; counted into :attr:`tokens`, by
            which work is predicted.
    """

    decoding: Decoding
    expected: int
    stop: Stop = field(default_factory=Stop)

    @property
    def tokens(self) -> int:
        return len(self.ids) + self.expected

    def withdraw(self) -> None:
        self.stop.asked = True


def generation_unit(ids: tuple[int, ...], decoding: Decoding, expected: int) -> GenerationUnit:
    """A unit whose key tells what it computes; one that draws without a seed is equal to no other.

    Args:
        expected: new tokens of one beam that are likely.
    """
    expected = max(1, min(expected, decoding.most)) * decoding.beams
    stop = Stop()
    rules = hashlib.sha256(repr(decoding).encode()).digest()
    if decoding.sampling is not None and decoding.sampling.seed is None:
        rules = id(stop).to_bytes(8, "little")  # Lives as long as the unit, and so does the key.
    key = b"g" + rules + array("i", ids).tobytes()
    return GenerationUnit(ids, None, key, decoding, expected, stop)


class Generated(NamedTuple):
    """What the engine wrote.

    Attributes:
        ids: new tokens, the ending one included.
        logprobs: of each of them, as the model had it before any rule changed it.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def write(ids: list[int], logprobs: list[float]) -> Array:
    """``[2, tokens]``: the ids, which float32 holds exactly up to 2^24, and their probabilities."""
    return np.array([ids, logprobs], dtype=np.float32).reshape(2, -1)


def read(result: Array) -> Generated:
    """Undo :func:`write`."""
    ids = result[0].astype(np.int64).tolist()
    return Generated(tuple(ids), tuple(result[1].tolist()))
