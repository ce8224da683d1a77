"""Relations as REBEL's kind of models write them, and where their entities stand in the text.

REBEL (Huguet Cabot and Navigli, 2021) writes ``<triplet> head <subj> tail <obj> relation``, and
further ``<subj> tail <obj> relation`` for the same head; mREBEL writes what the entities are in
place of ``<subj>`` and ``<obj>``: ``<triplet> head <per> tail <loc> relation``. Pure functions.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sluice_worker.engines.seq2seq.decoding import Generated

BEGIN = ("triplet", "relation")
"""Markers that begin a new head."""
UNTYPED = ("subj", "obj")
"""Markers that say nothing of the entity before them."""

Span = tuple[int, int]


class Mention(NamedTuple):
    """An entity as it was written; ``label`` is what it is, if that was written too."""

    text: str
    label: str | None


class Triplet(NamedTuple):
    """One relation as it was written. ``score`` is its tokens' geometric mean probability."""

    head: Mention
    tail: Mention
    relation: str
    score: float


class _Part(NamedTuple):
    """What follows a marker, up to the next one."""

    marker: str
    text: str
    logprobs: Sequence[float]


def triplets(
    written: Generated, markers: Mapping[int, str], text_of: Callable[[Sequence[int]], str]
) -> Iterator[Triplet]:
    """The complete triplets of a written text; what is not complete is passed over.

    Args:
        markers: by token, the name inside its angle brackets.
        text_of: what some tokens say.
    """
    head = tail = None
    head_label = tail_label = None
    state = ""
    for part in _parts(written, markers, text_of):
        if part.marker in BEGIN:
            head, tail, state = part, None, "head"
        elif part.marker == "subj" or (part.marker != "obj" and state in ("head", "relation")):
            tail, state = part, "tail"
            head_label = _label(part.marker)
        else:
            tail_label = _label(part.marker)
            state = "relation"
            if head and tail and head.text and tail.text and part.text:
                logprobs = [*head.logprobs, *tail.logprobs, *part.logprobs]
                yield Triplet(
                    Mention(head.text, head_label),
                    Mention(tail.text, tail_label),
                    part.text,
                    math.exp(sum(logprobs) / len(logprobs)),
                )
            tail = None  # A relation more would be of no tail.


def located(triplet: Triplet, text: str) -> tuple[Span, Span] | None:
    """Where head and tail stand in ``text``, as near to each other as they do; None if not."""
    heads, tails = places(triplet.head.text, text), places(triplet.tail.text, text)
    pairs = [(head, tail) for head in heads for tail in tails if head != tail]
    return min(pairs, key=_distance, default=None)


def places(mention: str, text: str) -> list[Span]:
    """Where ``mention`` stands: as whole words, or else within them; as it is written, or else in
    capitals or small letters of another kind, and with other white space."""
    words = r"\s+".join(map(re.escape, mention.split()))
    for pattern in (rf"(?<!\w){words}(?!\w)", words):
        for flags in (0, re.IGNORECASE):
            if found := [match.span() for match in re.finditer(pattern, text, flags)]:
                return found
    return []


def _parts(
    written: Generated, markers: Mapping[int, str], text_of: Callable[[Sequence[int]], str]
) -> Iterator[_Part]:
    starts = [place for place, token in enumerate(written.ids) if token in markers]
    for start, stop in itertools.pairwise([*starts, len(written.ids)]):
        text = text_of(written.ids[start + 1 : stop]).strip()
        yield _Part(markers[written.ids[start]], text, written.logprobs[start:stop])


def _label(marker: str) -> str | None:
    return None if marker in UNTYPED else marker


def _distance(pair: tuple[Span, Span]) -> int:
    first, second = sorted(pair)
    return second[0] - first[1]
