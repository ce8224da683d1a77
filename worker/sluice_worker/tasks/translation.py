"""Translation, sentence by sentence, as such models are trained; the white space between stays.

Equal to transformers' ``generate`` on each sentence. A sentence that is too long for the model is
read in pieces, so nothing is left out.
"""

from collections.abc import Sequence

from sluice_api.call import Call, Item, place
from sluice_api.shapes.texts import WrittenItem, item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array
from sluice_worker.engines.seq2seq.decoding import Decoding, Generated
from sluice_worker.tasks.base import Prepared, TaskModule, dealt, text_of
from sluice_worker.tasks.languages import Direction, languages_of
from sluice_worker.tasks.sentences import Span, cut, sentences
from sluice_worker.tasks.writing import (
    MAX_PIECES,
    Lengths,
    Piece,
    WritingMaterial,
    check_characters,
    decoding_of,
    finish_reason,
    framed,
    results,
    room_for,
    too_many_pieces,
)

TASK = Task.TRANSLATION
NEEDS = "a sequence-to-sequence model for translation"

_FULL_STOPS = "。！？」』”’"
"""What a sentence of a language without spaces ends with."""


def offers(material: WritingMaterial) -> bool:
    return TASK in material.writer.tasks


def build(material: WritingMaterial) -> TaskModule:
    return Translation(material)


class Translation:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, material: WritingMaterial) -> None:
        self._writer = material.writer
        self._tokenizer = material.tokenizer
        self._max_tokens = material.max_tokens
        self._choose = languages_of(material.writer, material.tokenizer)
        self._lengths = Lengths(1.2)

    def prepare(self, call: Call) -> Prepared:
        parameters = call.parameters
        direction = self._choose(parameters.get("source"), parameters.get("target"))
        decoding = decoding_of(
            self._writer,
            parameters,
            variant=direction.variant,
            start=direction.start,
            forced_first=direction.forced_first,
        )
        texts = [text_of(call, index) for index in range(len(call.inputs))]
        pieces = [
            self._pieces(text, direction, place(call, index)) for index, text in enumerate(texts)
        ]

        def finish(arrays: Sequence[Array]) -> list[Item]:
            each = dealt(results(arrays), map(len, pieces))
            return [
                self._item(text, own, written, direction, decoding)
                for text, own, written in zip(texts, pieces, each, strict=True)
            ]

        units = [self._lengths.unit(piece, decoding) for own in pieces for piece in own]
        return Prepared(units, finish)

    def _pieces(self, text: str, direction: Direction, where: str) -> list[Piece]:
        tokenizer = self._tokenizer
        room = room_for(self._max_tokens, direction.frame, direction.prefix, tokenizer)
        check_characters(text, room, where)
        whole = sentences(text)
        if len(whole) > MAX_PIECES:  # Before any is looked at.
            raise too_many_pieces(where)
        spans: list[Span] = []
        for span in whole:
            for piece in cut(text, span, room, tokenizer):
                if len(spans) == MAX_PIECES:
                    raise too_many_pieces(where)
                spans.append(piece)
        return [
            Piece(framed(direction.frame, direction.prefix, text[start:end], tokenizer), start, end)
            for start, end in spans
        ]

    def _item(
        self,
        text: str,
        pieces: list[Piece],
        written: Sequence[Generated],
        direction: Direction,
        decoding: Decoding,
    ) -> Item:
        for piece, part in zip(pieces, written, strict=True):
            self._lengths.learn(piece, part)
        translated = [self._tokenizer.text(part.ids).strip() for part in written]
        return item(
            WrittenItem(
                text=joined(text, [(piece.start, piece.end) for piece in pieces], translated),
                finish_reason=finish_reason(written, decoding),
                source=direction.source,
                target=direction.target,
                chunks=len(pieces),
                prompt_tokens=sum(len(piece.ids) for piece in pieces),
                completion_tokens=sum(len(part.ids) for part in written),
            )
        )


def joined(text: str, spans: Sequence[tuple[int, int]], translated: Sequence[str]) -> str:
    """The translations with what stood around the originals between them."""
    parts: list[str] = []
    before = 0
    for (start, end), part in zip(spans, translated, strict=True):
        gap = text[before:start]
        if not gap and parts and not parts[-1].endswith(tuple(_FULL_STOPS)):
            gap = " "
        parts += [gap, part]
        before = end
    return "".join([*parts, text[before:]])
