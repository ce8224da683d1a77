"""One NLP task: from a call to units, and from the engine's arrays back to items."""

from collections.abc import Sequence
from typing import Protocol

from sluice_api.call import Call, Item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit


class TaskModule(Protocol):
    """Made once per model. Both methods are pure but for caches and safe to call from threads."""

    task: Task

    def prepare(self, call: Call) -> list[Unit]:
        """Tokenise; called on a tokeniser thread. Raises ApiError naming field, value and fix."""
        ...

    def finish(self, call: Call, units: Sequence[Unit], arrays: Sequence[Array]) -> list[Item]:
        """The items of ``call.inputs``, in order, from the arrays of the units of ``prepare``."""
        ...
