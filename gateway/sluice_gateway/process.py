"""What every gateway process does around its parts: event loop, garbage collector, exit codes."""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

from sluice_api import names


def run(serve: Callable[[], Awaitable[bool]]) -> bool:
    """Run ``serve`` in an event loop of its own; what it returned."""
    # Imported late: what is wrong with the settings is told without waiting for it.
    import uvloop

    async def begin() -> bool:
        logging.getLogger(__name__).info("starting", extra={"pid": os.getpid()})
        return await serve()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(begin())


def freeze() -> None:
    """Tune the garbage collector: the main path makes no cycles."""
    # What exists now lives as long as the process: the collector need not look at it again, nor
    # run after every few hundred requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def exit_misconfigured(error: Exception) -> NoReturn:
    """End the process: it cannot start as it is told to."""
    print(f"sluice-gateway: {error}", file=sys.stderr)  # noqa: T201 - for the person at the shell
    sys.exit(names.EXIT_BAD_CONFIGURATION)
