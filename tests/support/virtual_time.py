"""An event loop whose clock jumps: hours of waiting pass at once, in the right order.

For code that waits on nothing but time and other tasks. Whoever waits for a socket would wait for
ever, so a loop with nothing due and nothing ready fails.
"""

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable
from typing import Any


class _NoWaiting(selectors.SelectSelector):
    """Says at once that nothing has happened, and tells the loop how long it wanted to wait."""

    def __init__(self, loop_clock: "VirtualLoop") -> None:
        super().__init__()
        self._clock = loop_clock

    def select(self, timeout: float | None = None) -> list[Any]:
        happened = super().select(0)
        if not happened:
            if timeout is None:
                raise RuntimeError("everything waits, and nothing is due")
            self._clock.skip(timeout)
        return happened


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time starts at 1000 and passes only when everybody waits."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_NoWaiting(self))

    def time(self) -> float:
        return self._now

    def skip(self, seconds: float) -> None:
        self._now += seconds


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on such a loop; fixtures stay its arguments."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def body() -> None:
            await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(body())

    return run
