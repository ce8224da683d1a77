"""From scores of tokens to entities: the aggregation strategies of transformers' pipeline.

Labels are ``B-…`` and ``I-…`` (begin, inside) or bare; a label without either counts as inside, so
that neighbours of one label join. Pure: scores in, spans out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sluice_worker.tasks.ranking import Scores


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or a word made of several.

    Attributes:
        start, end: characters of the text, half-open.
        scores: a probability for each label.
        subword: it goes on with the word of the piece before it.
    """

    start: int
    end: int
    scores: Scores
    subword: bool


@dataclass(frozen=True, slots=True)
class Entity:
    label: str
    score: float
    start: int
    end: int


def aggregate(pieces: Sequence[Piece], labels: Sequence[str], aggregation: str) -> list[Entity]:
    """The entities of a text, ignored ones among them.

    Args:
        aggregation: ``none`` for every token by itself, or how they are joined: ``simple``, or
            after whole words have been decided by their ``first``, ``average`` or ``max``.
    """
    if aggregation not in ("none", "simple"):
        pieces = [_word(group, aggregation) for group in _words(pieces)]
    decided = [_decided(piece, labels) for piece in pieces]
    return decided if aggregation == "none" else [_joined(group) for group in _groups(decided)]


def names(labels: Sequence[str]) -> list[str]:
    """What entities of these labels may be called, joined or not."""
    return list(dict.fromkeys((*labels, *(_tag(label)[1] for label in labels))))


def _words(pieces: Sequence[Piece]) -> list[list[Piece]]:
    words: list[list[Piece]] = []
    for piece in pieces:
        if piece.subword and words:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _word(pieces: list[Piece], aggregation: str) -> Piece:
    if aggregation == "first":
        scores = pieces[0].scores
    elif aggregation == "max":
        scores = max(pieces, key=lambda piece: float(piece.scores.max())).scores
    else:
        scores = np.mean([piece.scores for piece in pieces], axis=0)
    return Piece(pieces[0].start, pieces[-1].end, scores, subword=False)


def _decided(piece: Piece, labels: Sequence[str]) -> Entity:
    best = int(piece.scores.argmax())
    return Entity(labels[best], float(piece.scores[best]), piece.start, piece.end)


def _groups(decided: list[Entity]) -> list[list[Entity]]:
    """Neighbours that belong to one entity."""
    if not decided:
        return []
    groups = [[decided[0]]]
    for before, entity in pairwise(decided):
        begins, tag = _tag(entity.label)
        if begins or tag != _tag(before.label)[1]:
            groups.append([])
        groups[-1].append(entity)
    return groups


def _joined(group: list[Entity]) -> Entity:
    score = float(np.mean([entity.score for entity in group]))
    label = group[0].label.split("-", 1)[-1]
    return Entity(label, score, group[0].start, group[-1].end)


def _tag(label: str) -> tuple[bool, str]:
    """Whether an entity begins here, and what it is."""
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label
