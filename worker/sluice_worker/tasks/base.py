"""One NLP task: from a call to units of work, and from the engine's arrays back to items.

A task is a module with ``TASK``, ``offers`` and ``build``, and a line in ``tasks.registry``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sluice_api.call import Call, Item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit
from sluice_worker.models.description import Description
from sluice_worker.models.tokenizer import Tokenizer


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
    """What a task is built from."""

    description: Description
    tokenizer: Tokenizer


def text_of(call: Call, index: int) -> str:
    """Input ``index`` of a task whose codecs only let texts through."""
    value = call.inputs[index]
    assert isinstance(value, str), "the codecs of this task take texts only"
    return value
