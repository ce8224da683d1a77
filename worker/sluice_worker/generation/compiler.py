"""Schemas become grammars here: off the event loop, one at a time, and never for long.

``intake`` asks before a call is tokenised. The library follows a schema by recursion and cannot be
interrupted, so it has a thread of its own with a deep stack, and a deadline after which the caller
is told and the thread goes on alone. Lists of tools that were found to be good are remembered.
"""

import asyncio
import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from sluice_api.errors import ApiError
from sluice_api.shapes.generation import Parameters
from sluice_worker.admission import overloaded
from sluice_worker.generation.grammar import Schema, SchemaGrammar, binds, schema_of, tools_of

SECONDS: Final = 5.0
MOST_WAITING: Final = 32
MOST_REMEMBERED: Final = 1024
STACK_BYTES: Final = 256 << 20
"""Address space, of which only what is used takes memory: 27 KiB for each definition that refers to
another, of which ``grammar.MOST_OBJECTS`` leaves at most a few thousand."""


class Reader(Protocol):
    """What reads schemas, for as long as it takes: the model's vocabulary. Both raise ApiError."""

    def grammar(self, schema: Schema) -> SchemaGrammar: ...

    def check(self, schema: Schema) -> None: ...


class Compiler:
    """Reads the schemas of calls to one model.

    Args:
        seconds: how long the schemas of one call may take, and how long one waits for its turn.
    """

    def __init__(self, reader: Reader, *, seconds: float = SECONDS) -> None:
        self._reader = reader
        self._seconds = seconds
        self._waiting = 0
        self._good: dict[bytes, None] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        usual = threading.stack_size(STACK_BYTES)
        self._thread.submit(lambda: None)  # The thread begins, and takes its stack, now.
        threading.stack_size(usual)

    def __repr__(self) -> str:
        return f"<Compiler {self._waiting} waiting>"

    async def grammar(self, parameters: Parameters) -> SchemaGrammar | None:
        """What every choice of a call begins with a copy of; None where the answer is free.

        Raises ApiError that names the field: it is no usable schema, or takes too long.
        """
        tools = self._unread(parameters)
        if tools is None and not binds(parameters):
            return None
        if self._waiting >= MOST_WAITING:
            raise overloaded(self._seconds)
        job = _Job(self._reader, parameters, self._seconds)
        self._waiting += 1
        compiling = self._thread.submit(job.run, tools is not None)
        try:
            async with asyncio.timeout(self._seconds):
                grammar = await asyncio.wrap_future(compiling)
        except TimeoutError:
            if compiling.cancelled():  # It has not even begun: others hold it up.
                raise overloaded(self._seconds) from None
            raise job.too_long() from None
        finally:
            self._waiting -= 1
        if tools is not None:
            self._remember(tools)
        return grammar

    def _unread(self, parameters: Parameters) -> bytes | None:
        """A digest of the tools that the model is told of; None where there is nothing to read."""
        if parameters.tools is None or parameters.tool_choice == "none":
            return None
        digest = hashlib.sha256(parameters.tools.encode())
        digest.update(b"required" if parameters.tool_choice == "required" else b"")
        return None if digest.digest() in self._good else digest.digest()

    def _remember(self, tools: bytes) -> None:
        self._good[tools] = None
        if len(self._good) > MOST_REMEMBERED:
            del self._good[next(iter(self._good))]

    def close(self) -> None:
        """End the thread; what it does is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Job:
    """Reading the schemas of one call, of which :attr:`where` is the one it is at."""

    def __init__(self, reader: Reader, parameters: Parameters, seconds: float) -> None:
        self._reader = reader
        self._parameters = parameters
        self._seconds = seconds
        self.where = "tools"

    def run(self, read_tools: bool) -> SchemaGrammar | None:
        ends = time.monotonic() + self._seconds
        # Where any of them may be called, it is told here which one cannot be followed.
        required = self._parameters.tool_choice == "required"
        read = self._reader.grammar if required else self._reader.check
        for tool in tools_of(self._parameters) if read_tools else ():
            self.where = tool.where
            if time.monotonic() > ends:  # Nobody waits any more.
                raise self.too_long()
            read(tool)
        if not binds(self._parameters):
            return None
        schema = schema_of(self._parameters)
        self.where = schema.where
        return self._reader.grammar(schema)

    def too_long(self) -> ApiError:
        return ApiError(
            "invalid_field",
            f"{self.where}: got a schema that takes longer than {self._seconds:g} s to compile;"
            " fewer properties, patterns, bounds of numbers and alternatives take less.",
            param=self.where,
        )
