"""Open-loop load: requests at fixed moments, whatever the answers do; every input is unique.

Runs on a thread of its own with its own event loop, so that synchronous tests can act meanwhile.
"""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import aiohttp

from tests.support.arrivals import left_out

_numbers = itertools.count()


@dataclass
class Load:
    """What came of it.

    Attributes:
        rate: requests a second from now on.
        seconds: of each good answer.
        failures: status and body, or exception, of each other one.
    """

    rate: float
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return len(self.seconds) + len(self.failures)


@contextmanager
def open_loop(
    url: str, rate: float, *, model: str = "minilm", words: int = 8, keep_alive: bool = True
) -> Iterator[Load]:
    """``rate`` embedding requests a second until the block ends; then all answers are awaited.

    Args:
        words: length of each input.
        keep_alive: connections are used again; a request on one that is being closed has failed.
    """
    load, stop = Load(rate), threading.Event()
    run = partial(_run, load, f"{url}/v1/embeddings", model, words, stop, keep_alive)
    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join(160)
        assert not thread.is_alive(), "answers are outstanding"


async def _run(
    load: Load, url: str, model: str, words: int, stop: threading.Event, keep_alive: bool
) -> None:
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)
    timeout = aiohttp.ClientTimeout(total=300)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as tasks,
    ):
        due = time.monotonic()
        while not stop.is_set():
            text = f"{next(_numbers)} " + "parcel " * (words - 1)
            tasks.create_task(_ask(load, session, url, {"model": model, "input": text}))
            due += left_out(due, time.monotonic()) + 1 / load.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _ask(load: Load, session: aiohttp.ClientSession, url: str, body: dict[str, str]) -> None:
    began = time.monotonic()
    try:
        async with session.post(url, json=body) as response:
            text = await response.text()
            if response.status == 200:
                load.seconds.append(time.monotonic() - began)
            else:
                load.failures.append(f"{response.status} {text[:300]}")
    except (aiohttp.ClientError, TimeoutError) as error:
        load.failures.append(repr(error))
