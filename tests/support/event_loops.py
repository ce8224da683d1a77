"""Run an async test on uvloop, the loop the product runs on, with a deadline."""

import asyncio
import functools
import socket
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


async def stand_still(
    seconds: float, heard: Callable[[], None], meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Block the running loop, as a pause of its process does, until there is something to hear.

    Blocked while it reads a socket, it looks at its timers before it looks at the next one: at
    what came meanwhile, of which ``heard`` is told.
    """
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    ours, theirs = socket.socketpair()

    def block() -> None:
        ours.recv(1)
        loop.add_reader(ours, hear)
        time.sleep(seconds)
        meanwhile()
        theirs.send(b"x")

    def hear() -> None:
        loop.remove_reader(ours)
        heard()
        over.set_result(None)

    with ours, theirs:
        loop.add_reader(ours, block)
        theirs.send(b"x")
        await over
