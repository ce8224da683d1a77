"""Summarisation. A text that is too long is read in windows of whole sentences.

Equal to transformers' ``generate`` on each window; their summaries follow one another. What a
window repeats of the one before it (``stride``) may be summed up twice.
"""

from collections.abc import Sequence

from sluice_api.call import Call, Item, place
from sluice_api.errors import ApiError
from sluice_api.shapes.texts import WrittenItem, item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array
from sluice_worker.engines.seq2seq.decoding import Decoding, Generated
from sluice_worker.tasks.base import Prepared, TaskModule, dealt, text_of
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

TASK = Task.SUMMARIZATION
NEEDS = "a sequence-to-sequence model for summaries"


def offers(material: WritingMaterial) -> bool:
    return TASK in material.writer.tasks


def build(material: WritingMaterial) -> TaskModule:
    return Summarization(material)


class Summarization:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, material: WritingMaterial) -> None:
        self._writer = material.writer
        self._tokenizer = tokenizer = material.tokenizer
        self._prefix = str(material.writer.by_task.get(TASK, {}).get("prefix") or "")
        self._room = room_for(material.max_tokens, tokenizer.frame, self._prefix, tokenizer)
        self._lengths = Lengths(0.4)

    def prepare(self, call: Call) -> Prepared:
        decoding = decoding_of(self._writer, call.parameters, variant=TASK)
        stride = self._stride(call)
        truncate = bool(call.parameters.get("truncate"))
        pieces: list[list[Piece]] = []
        cut_short: list[bool] = []
        for index in range(len(call.inputs)):
            text, where = text_of(call, index), place(call, index)
            own = in_windows(text, self._prefix, self._room, stride, self._tokenizer, where)
            cut_short.append(truncate and len(own) > 1)
            pieces.append(own[:1] if truncate else own)

        def finish(arrays: Sequence[Array]) -> list[Item]:
            each = dealt(results(arrays), map(len, pieces))
            return [
                self._item(own, written, decoding, truncated=short)
                for own, written, short in zip(pieces, each, cut_short, strict=True)
            ]

        units = [self._lengths.unit(piece, decoding) for own in pieces for piece in own]
        return Prepared(units, finish)

    def _stride(self, call: Call) -> int:
        stride = int(call.parameters.get("stride", 0))
        if stride > self._room // 2:
            raise ApiError(
                "invalid_field",
                f"parameters.stride: got {stride}, a window of this model has {self._room} tokens,"
                f" of which at most half ({self._room // 2}) may be read again.",
                param="parameters.stride",
            )
        return stride

    def _item(
        self,
        pieces: list[Piece],
        written: Sequence[Generated],
        decoding: Decoding,
        *,
        truncated: bool,
    ) -> Item:
        for piece, part in zip(pieces, written, strict=True):
            self._lengths.learn(piece, part)
        texts = [self._tokenizer.text(part.ids).strip() for part in written]
        return item(
            WrittenItem(
                text=" ".join(text for text in texts if text),
                finish_reason=finish_reason(written, decoding),
                chunks=len(pieces),
                truncated=truncated,
                prompt_tokens=sum(len(piece.ids) for piece in pieces),
                completion_tokens=sum(len(part.ids) for part in written),
            )
        )
