"""Schemas become grammars here: off the event loop, one at a time, and never for long.

``intake`` asks before a call is tokenised. The library follows a schema by recursion and cannot be
interrupted, so it has a thread of its own with a deep stack, and a deadline after which the caller
is told and the thread goes on alone.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sluice_api.errors import ApiError
from sluice_api.shapes.generation import Parameters
from sluice_worker.admission import overloaded
from sluice_worker.generation.grammar import SchemaGrammar, schema_field, schema_of

SECONDS: Final = 5.0
MOST_WAITING: Final = 32
STACK_BYTES: Final = 256 << 20
"""Address space, of which only what is used takes memory: 27 KiB for each definition that refers to
another, of which ``grammar.MOST_OBJECTS`` leaves at most a few thousand."""


class Compiler:
    """Compiles the schemas of calls to one model.

    Args:
        compiled: takes a schema and the field it comes from; raises ApiError.
        seconds: how long one schema may take, and how long one waits for its turn.
    """

    def __init__(
        self, compiled: Callable[[str, str], SchemaGrammar], *, seconds: float = SECONDS
    ) -> None:
        self._compiled = compiled
        self._seconds = seconds
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        usual = threading.stack_size(STACK_BYTES)
        self._thread.submit(lambda: None)  # The thread begins, and takes its stack, now.
        threading.stack_size(usual)

    def __repr__(self) -> str:
        return f"<Compiler {self._waiting} waiting>"

    async def grammar(self, parameters: Parameters) -> SchemaGrammar | None:
        """What every choice of a call begins with a copy of; None where nothing is asked for.

        Raises ApiError that names the field: it is no usable schema, or takes too long.
        """
        where = schema_field(parameters)
        if where is None:
            return None
        if self._waiting >= MOST_WAITING:
            raise overloaded(self._seconds)
        self._waiting += 1
        compiling = self._thread.submit(lambda: self._compiled(schema_of(parameters), where))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(compiling), self._seconds)
        except TimeoutError:
            if compiling.cancelled():  # It has not even begun: others hold it up.
                raise overloaded(self._seconds) from None
            raise ApiError(
                "invalid_field",
                f"{where}: got a schema that takes longer than {self._seconds:g} s to compile. Make"
                " it simpler: fewer properties, patterns, bounds of numbers and alternatives.",
                param=where,
            ) from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the thread; what it does is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
