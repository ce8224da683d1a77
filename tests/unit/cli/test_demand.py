"""The demand stream survives whatever its other end does."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from aiohttp import web

from sluice_api import wire
from sluice_cli.up.demand import follow


def _line(sequence: int) -> bytes:
    record = wire.Demand(
        sequence=sequence,
        gateway="g",
        namespace="default",
        service="m",
        revision="r",
        interval_seconds=1.0,
    )
    return msgspec.json.encode(record) + b"\n"


CHAPTERS: list[list[bytes]] = [
    [_line(1), b"\n", _line(2)],  # A stream that ends.
    [_line(3), b"{garbage\n", _line(99)],  # What follows garbage cannot be trusted.
    [_line(4)[:20]],  # A stream cut in the middle of a line.
    [_line(5)],
]


@pytest.fixture
async def gateway() -> AsyncIterator[str]:
    """Each connection gets the next chapter; the first one is refused."""
    opened = 0

    async def stream(request: web.Request) -> web.StreamResponse:
        nonlocal opened
        opened += 1
        if opened == 1:
            return web.Response(status=503)
        response = web.StreamResponse()
        await response.prepare(request)
        for line in CHAPTERS[(opened - 2) % len(CHAPTERS)]:
            await response.write(line)
        return response

    app = web.Application()
    app.router.add_get("/internal/demand", stream)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_every_good_record_is_told_and_the_stream_is_opened_again(gateway: str) -> None:
    seen: list[int] = []
    last = asyncio.Event()

    def note(record: wire.Demand) -> None:
        seen.append(record.sequence)
        if record.sequence == 5:
            last.set()

    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(follow(session, gateway, note))
        async with asyncio.timeout(60):
            await last.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert seen == [1, 2, 3, 5]
