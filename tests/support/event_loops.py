"""Run an async test on uvloop, the loop the product runs on, with a deadline."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

DEADLINE_SECONDS = 60.0


def on_uvloop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a plain test function of a coroutine function; fixtures stay its arguments."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await test(*args, **kwargs)

        uvloop.run(bounded())

    return run


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until ``condition`` holds; fails after ``seconds``."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s")
        await asyncio.sleep(0.002)
