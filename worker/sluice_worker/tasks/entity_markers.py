"""A text with markers around two of its entities, as relation classifiers read it.

Soares et al. 2019 (arXiv:1906.03158) and Zhou and Chen 2021 (arXiv:2102.01373, for typed markers).
Pure: texts in, texts out; which markers a model knows is in its description.
"""

from dataclasses import dataclass

from sluice_worker.models.description import Markers


@dataclass(frozen=True, slots=True)
class Mention:
    """Characters of the text, half-open, and what they are."""

    start: int
    end: int
    label: str | None


@dataclass(frozen=True, slots=True)
class Marked:
    """A part of a text with both entities marked.

    Attributes:
        start, end: from the first marker to the last, in ``text``.
        whole: nothing of the text is missing.
    """

    text: str
    start: int
    end: int
    whole: bool


def mark(text: str, head: Mention, tail: Mention, markers: Markers, *, margin: int) -> Marked:
    """Put the markers in. What is farther from both entities than ``margin`` characters goes."""
    begin, stop = _surroundings(text, head, tail, margin)
    parts, start, end, at, length = [], -1, 0, begin, 0
    for place, marker in _insertions(head, tail, markers):
        parts += [text[at:place], marker]
        length += place - at
        start = length if start < 0 else start
        length += len(marker)
        at, end = place, length
    whole = begin == 0 and stop == len(text)
    return Marked("".join((*parts, text[at:stop])), start, end, whole)


def _surroundings(text: str, head: Mention, tail: Mention, margin: int) -> tuple[int, int]:
    """Where the part to keep begins and ends: between words."""
    first, last = min(head.start, tail.start), max(head.end, tail.end)
    begin, stop = max(0, first - margin), min(len(text), last + margin)
    if begin > 0:
        blank = text.find(" ", begin, first)
        begin = begin if blank < 0 else blank + 1
    if stop < len(text):
        blank = text.rfind(" ", last, stop)
        stop = stop if blank < 0 else blank
    return begin, stop


def _insertions(head: Mention, tail: Mention, markers: Markers) -> list[tuple[int, str]]:
    """(place, marker) in the order of the text; what is inside stays inside."""
    keyed = []
    for order, (mention, (opening, closing)) in enumerate(
        ((head, markers.head), (tail, markers.tail))
    ):
        label = mention.label or "entity"
        start, end = mention.start, mention.end
        keyed.append(((start, 1, -end, order), start, opening.replace("{label}", label)))
        keyed.append(((end, 0, -start, -order), end, closing.replace("{label}", label)))
    return [(place, marker) for _, place, marker in sorted(keyed)]
