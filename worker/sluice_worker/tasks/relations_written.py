"""Relation extraction by models that write triplets: REBEL and mREBEL.

The model finds the entities itself. A text that is too long is read in windows that overlap; a
relation that several of them found counts once. What the model wrote and the text does not hold is
answered as ``unlocated``, because it has no place in the text.
"""

from collections.abc import Sequence
from typing import Any

from sluice_api.call import Call, Item, members_of, place
from sluice_api.errors import ApiError
from sluice_api.shapes.listing import item
from sluice_api.shapes.relations import check_asked_directly
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array
from sluice_worker.engines.seq2seq.decoding import Generated
from sluice_worker.tasks.base import Prepared, TaskModule, dealt
from sluice_worker.tasks.triplets import Triplet, located, triplets
from sluice_worker.tasks.writing import (
    Lengths,
    Piece,
    WritingMaterial,
    decoding_of,
    finish_reason,
    in_windows,
    results,
    room_for,
)

TASK = Task.RELATION_EXTRACTION
NEEDS = (
    "a sequence-to-sequence model whose tokenizer has REBEL's markers (<triplet>, <subj>, <obj>)"
)

_TRIPLET_LANGUAGE = "tp_XX"
"""mREBEL writes triplets as if they were a language."""
_OVERLAP_SHARE = 4
"""Neighbouring windows share at most a quarter, in whole sentences."""


def offers(material: WritingMaterial) -> bool:
    return TASK in material.writer.tasks


def build(material: WritingMaterial) -> TaskModule:
    return WrittenRelations(material)


class WrittenRelations:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, material: WritingMaterial) -> None:
        self._tokenizer = tokenizer = material.tokenizer
        self._room = room_for(material.max_tokens, tokenizer.frame, "", tokenizer)
        start = tokenizer.languages.get(_TRIPLET_LANGUAGE)
        self._decoding = decoding_of(material.writer, {}, variant=TASK, start=start)
        self._lengths = Lengths(1.0)

    def prepare(self, call: Call) -> Prepared:
        check_asked_directly(call)
        threshold = call.parameters.get("threshold") or 0.0
        texts = [self._text(call, index) for index in range(len(call.inputs))]
        pieces = [self._pieces(text, place(call, index)) for index, text in enumerate(texts)]

        def finish(arrays: Sequence[Array]) -> list[Item]:
            each = dealt(results(arrays), map(len, pieces))
            return [
                self._item(text, own, written, threshold)
                for text, own, written in zip(texts, pieces, each, strict=True)
            ]

        units = [self._lengths.unit(piece, self._decoding) for own in pieces for piece in own]
        return Prepared(units, finish)

    def _text(self, call: Call, index: int) -> str:
        members = members_of(call.inputs[index])
        for name in ("entities", "pairs"):
            if name in members:
                where = f"{place(call, index)}.{name}"
                raise ApiError(
                    "invalid_field",
                    f"{where}: this model finds the entities itself. Leave it out.",
                    param=where,
                )
        return str(members["text"])

    def _pieces(self, text: str, where: str) -> list[Piece]:
        stride = self._room // _OVERLAP_SHARE
        return in_windows(text, "", self._room, stride, self._tokenizer, where)

    def _item(
        self, text: str, pieces: list[Piece], written: Sequence[Generated], threshold: float
    ) -> Item:
        found = _Found(text)
        for piece, part in zip(pieces, written, strict=True):
            self._lengths.learn(piece, part)
            for triplet in triplets(part, self._tokenizer.markers, self._tokenizer.text):
                if triplet.score >= threshold:
                    found.add(triplet, piece)
        tokens = sum(len(piece.ids) for piece in pieces) + sum(len(part.ids) for part in written)
        answer = {**found.answer(), "finish_reason": finish_reason(written, self._decoding)}
        return item(answer, tokens, chunks=len(pieces))


class _Found:
    """The relations of one text, each once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._relations: dict[tuple[_Entity, _Entity, str], float] = {}
        self._unlocated: dict[tuple[str, str, str], float] = {}

    def add(self, triplet: Triplet, piece: Piece) -> None:
        spans = located(triplet, self._text[piece.start : piece.end])
        if spans is None:
            written = (triplet.head.text, triplet.tail.text, triplet.relation)
            self._unlocated[written] = max(triplet.score, self._unlocated.get(written, 0.0))
            return
        head, tail = (
            (start + piece.start, end + piece.start, mention.label)
            for (start, end), mention in zip(spans, (triplet.head, triplet.tail), strict=True)
        )
        key = (head, tail, triplet.relation)
        self._relations[key] = max(triplet.score, self._relations.get(key, 0.0))

    def answer(self) -> dict[str, Any]:
        """Members of the canonical item: entities in the text's order, relations by score."""
        named = {entity for head, tail, _ in self._relations for entity in (head, tail)}
        entities = sorted(named, key=lambda entity: (*entity[:2], entity[2] or ""))
        ranked = sorted(self._relations.items(), key=lambda pair: -pair[1])
        answer: dict[str, Any] = {
            "entities": [
                {"label": label, "start": start, "end": end, "text": self._text[start:end]}
                for start, end, label in entities
            ],
            "relations": [
                {
                    "head": entities.index(head),
                    "tail": entities.index(tail),
                    "label": label,
                    "score": score,
                }
                for (head, tail, label), score in ranked
            ],
        }
        if self._unlocated:
            answer["unlocated"] = [
                {"head": head, "tail": tail, "label": label, "score": score}
                for (head, tail, label), score in self._unlocated.items()
            ]
        return answer


_Entity = tuple[int, int, str | None]
"""Start, end and label; an entity of two kinds is two."""
