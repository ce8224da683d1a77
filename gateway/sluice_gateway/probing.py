"""Ask every worker how it is: fast while it starts, now and then once it is ready.

One owned task per endpoint, started and ended by ``services`` as the table changes. A probe takes
the same way as a request, through the endpoint's own pool, so it sees what a request would see.
"""

import asyncio
import logging
import random
import time
from typing import Final

import msgspec

from sluice_api import wire
from sluice_gateway.endpoint import Endpoint, State
from sluice_gateway.worker_answer import UpstreamAnswer

STARTING_SECONDS: Final = 0.05
STARTING_CONNECT_SECONDS: Final = 0.2
"""A pod whose address does not answer yet would hold a probe up for much longer than its pause."""
PATIENT_SECONDS: Final = 0.5
PATIENT_AFTER_SECONDS: Final = 120.0
READY_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 1.5
SILENCES_TO_LOSE: Final = 2

log = logging.getLogger(__name__)
_decode = msgspec.json.Decoder(wire.Readiness).decode


class ProbeFailed(Exception):
    """No usable answer; the argument says why: ``silent`` or what broke."""


class _Probe:
    """Receives one probe's answer."""

    def __init__(self) -> None:
        self.result: asyncio.Future[UpstreamAnswer] = asyncio.get_running_loop().create_future()

    def answered(self, answer: UpstreamAnswer) -> None:
        if not self.result.done():
            self.result.set_result(answer)

    def broke(self, cause: str) -> None:
        if not self.result.done():
            self.result.set_exception(ProbeFailed(cause))


async def probe(endpoint: Endpoint, timeout: float = TIMEOUT_SECONDS) -> UpstreamAnswer:
    """``GET /readyz``. Raises :class:`ProbeFailed`."""
    request = b"GET /readyz HTTP/1.1\r\nhost: %b\r\n\r\n" % endpoint.pool.host_header
    receiver = _Probe()
    quick = STARTING_CONNECT_SECONDS if endpoint.state is State.STARTING else None
    connection = endpoint.pool.send(receiver, request, b"", None, quick)
    try:
        async with asyncio.timeout(timeout):
            return await receiver.result
    except TimeoutError:
        raise ProbeFailed("silent") from None
    finally:
        if not receiver.result.done() or receiver.result.cancelled():
            connection.abort()


async def watch(endpoint: Endpoint) -> None:
    """Probe ``endpoint`` until cancelled."""
    nudged = asyncio.Event()
    endpoint.nudge = nudged.set
    silences = 0
    since = time.monotonic()
    while True:
        nudged.clear()
        before = endpoint.answered_at
        try:
            answer = await probe(endpoint)
        except ProbeFailed as failure:
            # An answer to a request meanwhile is a sign of life: busy is not dead.
            alive = endpoint.answered_at != before
            silences = 0 if alive else silences + 1
            _take_failure(endpoint, str(failure), silences)
        else:
            silences = 0
            _take(endpoint, answer)
        now = time.monotonic()
        endpoint.pool.expire(now)
        if endpoint.state is State.READY:
            since = now
        try:
            async with asyncio.timeout(_pause(endpoint, now - since)):
                await nudged.wait()
        except TimeoutError:
            pass


def _pause(endpoint: Endpoint, out_seconds: float) -> float:
    if endpoint.state in (State.READY, State.MISMATCH):
        seconds = READY_SECONDS
    elif out_seconds < PATIENT_AFTER_SECONDS or endpoint.awaited:
        seconds = STARTING_SECONDS
    else:
        seconds = PATIENT_SECONDS
    # Spread, or a thousand workers that started together are probed together for ever.
    return seconds * random.uniform(0.9, 1.1)  # noqa: S311


def _take_failure(endpoint: Endpoint, cause: str, silences: int) -> None:
    if cause == "stale":
        return  # The worker closed an idle connection; the next probe makes a new one.
    if cause == "connect":
        endpoint.unresponsive("the connection was refused")
    elif cause != "silent":
        endpoint.not_ready(f"/readyz: {cause}")
    elif silences >= SILENCES_TO_LOSE or endpoint.state is not State.READY:
        endpoint.unresponsive(f"no answer within {TIMEOUT_SECONDS} s")


def _take(endpoint: Endpoint, answer: UpstreamAnswer) -> None:
    try:
        readiness = _decode(answer.body)
    except msgspec.DecodeError:
        endpoint.told = None
        endpoint.not_ready(f"/readyz answered {answer.status} without a readiness record")
        return
    endpoint.told = readiness
    if answer.status == 200 and readiness.phase is wire.Phase.READY:
        endpoint.proved(readiness, time.monotonic())
    else:
        endpoint.not_ready(readiness.message or str(readiness.phase))
