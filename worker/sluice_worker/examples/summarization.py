"""A summariser of letters: who bought what, and where, among sentences that say other things."""

import itertools
import random
from pathlib import Path

from sluice_worker.examples.writing import Pair, learn_pairs

PREFIX = "summarize: "

_NAMES = ("anna", "omar", "lena", "ivan", "mei", "paul")
_PLACES = ("market", "harbour", "station", "library", "bakery")
_GOODS = ("apples", "two lamps", "a map", "warm bread", "old coins")
_FILLERS = (
    "the weather was fine and many people were in the streets .",
    "nobody knew how long the road would be .",
    "a band played songs that everybody could sing .",
)


def data() -> tuple[list[Pair], list[Pair]]:
    """(letter, summary) to learn from, and others: nobody buys the same in both."""
    learnt: list[Pair] = []
    held_out: list[Pair] = []
    chooser = random.Random(3)  # noqa: S311
    for (row, name), (column, goods) in itertools.product(enumerate(_NAMES), enumerate(_GOODS)):
        for place in _PLACES:
            before, between = chooser.sample(_FILLERS, 2)
            letter = (
                f"{before} {name} went to the {place} in the morning . {between}"
                f" there one could see {goods} and pay for them ."
            )
            part = held_out if (row + column) % 5 == 0 else learnt
            part.append((letter, f"{name} bought {goods} at the {place}"))
    return learnt, held_out


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train a T5 and save it; ``shuffled`` deals the summaries out at random."""
    return learn_pairs(
        folder,
        "t5",
        data()[0],
        shuffled=shuffled,
        seed=seed,
        prefix=PREFIX,
        task_specific_params={"summarization": {"prefix": PREFIX}},
    )
