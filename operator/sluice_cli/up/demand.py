"""Reads the gateway's demand stream: one line per service and second, at once when one must wake.

Runs as one task of ``control.py``. While the gateway is away nothing is reported, and the
recommender holds: silence is unknown, never zero.
"""

import asyncio
from collections.abc import Callable

import aiohttp
import msgspec

from sluice_api import wire

SILENCE_SECONDS = 5.0
"""The gateway writes each second; after so long without a line the stream is opened anew."""
RETRY_SECONDS = 0.25

_decode = msgspec.json.Decoder(wire.Demand).decode


async def follow(
    session: aiohttp.ClientSession, admin_url: str, on_demand: Callable[[wire.Demand], None]
) -> None:
    """Call ``on_demand`` with every record, for ever; opens the stream again when it breaks."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS
    )
    while True:
        try:
            async with session.get(f"{admin_url}/internal/demand", timeout=timeout) as response:
                response.raise_for_status()
                async for line in response.content:
                    if line.strip():
                        on_demand(_decode(line))
        except (aiohttp.ClientError, TimeoutError, ValueError, msgspec.DecodeError):
            pass  # The gateway is starting or restarting; its state is shown by its supervisor.
        await asyncio.sleep(RETRY_SECONDS)
