"""One NLP task: from a call to units of work, and from the engine's arrays back to items."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sluice_api.call import Call, Item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit


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
