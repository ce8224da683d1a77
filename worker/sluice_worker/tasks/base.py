"""One NLP task: from a call to units of work, and from the engine's arrays back to items.

A task is a module with ``TASK``, ``NEEDS`` (what kind of model, for people), ``offers`` and
``build``, and a line in ``tasks.registry``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sluice_api.call import Call, Item, instead, place
from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit
from sluice_worker.models.description import Description
from sluice_worker.models.tokenizer import Encoded, Tokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A tokenised call: what is to be computed, and what to do with the results.

    Attributes:
        units: what the engine must run; may be none when everything is known already.
        finish: from the arrays of ``units``, in order, to the items of ``call.inputs``, in order.
            Call it at most once, on any thread; takes microseconds per input.
    """

    units: Sequence[Unit]
    finish: Callable[[Sequence[Array]], list[Item]]


class TaskModule(Protocol):
    """Made once per model; safe to call from several threads at once."""

    task: Task

    def prepare(self, call: Call) -> Prepared:
        """Tokenise; called on a tokeniser thread. Raises ApiError naming field, value and fix."""
        ...


@dataclass(frozen=True, slots=True)
class Material:
    """What a task is built from; ``mask_id`` is there for a masked language model."""

    description: Description
    tokenizer: Tokenizer
    mask_id: int | None = None


def text_of(call: Call, index: int) -> str:
    """Input ``index`` of a task whose codecs only let texts through."""
    value = call.inputs[index]
    assert isinstance(value, str), "the codecs of this task take texts only"
    return value


def encode(tokenizer: Tokenizer, call: Call, index: int) -> Encoded:
    """The tokens of input ``index``, cut where the call has ``truncate``. Raises ApiError."""
    value, where, truncate = call.inputs[index], place(call, index), call.parameters["truncate"]
    other = instead(call.codec)
    if isinstance(value, str):
        return tokenizer.encode(value, where=where, truncate=truncate, instead=other)
    return tokenizer.accept(value, where=where, truncate=truncate, instead=other)


def dealt(values: Sequence[T], counts: Iterable[int]) -> Iterator[Sequence[T]]:
    """``values`` in runs of ``counts``: to each input what was computed for its parts."""
    start = 0
    for count in counts:
        yield values[start : start + count]
        start += count


def leading_part(tokenizer: Tokenizer, text: str, *, where: str) -> tuple[int, ...]:
    """The tokens of a text that stands before every window of another one: a query, a question.

    Raises ApiError when it would take more than half of a window.
    """
    ids, most = tokenizer.locate(text, where=where).ids, tokenizer.room(pair=True) // 2
    if len(ids) > most:
        raise ApiError(
            "input_too_long",
            f"{where}: got {len(ids)} tokens, at most {most} leave room for what is asked about.",
            param=where,
        )
    return ids
