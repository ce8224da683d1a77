"""When an exchange is given up, and what its caller is told then.

``dispatch`` sets a deadline once something is waited for. It is looked at anew when it comes: a
service that became ready, or a stream that goes on, moves it.
"""

import time
from collections.abc import Callable
from typing import Any

from sluice_api.errors import ApiError
from sluice_gateway.exchange import Exchange
from sluice_gateway.forward import deadline
from sluice_gateway.timers import TimerWheel


class Deadlines:
    """The deadlines of all exchanges.

    Args:
        step: takes a step of an exchange; see ``Dispatcher``.
    """

    def __init__(self, wheel: TimerWheel, step: Callable[..., Any]) -> None:
        self._wheel = wheel
        self._step = step

    def set(self, exchange: Exchange) -> None:
        """Give ``exchange`` up in time."""
        slot = exchange.slot = self._wheel.slot(_moment(exchange))
        slot[exchange] = None

    def begun(self, exchange: Exchange) -> None:
        """Its stream has: the time to the next event may be shorter than that to the first."""
        if exchange.slot is not None:
            exchange.slot.pop(exchange, None)
        self.set(exchange)

    def come(self, exchange: Exchange) -> None:
        """The deadline of ``exchange`` has come, or that of what it was before."""
        self._step(exchange, self._expired)

    def _expired(self, exchange: Exchange) -> None:
        service, now = exchange.service, time.monotonic()
        if now < _moment(exchange):
            # Its service became ready meanwhile, or stopped being so; or its stream goes on.
            self.set(exchange)
        elif service.endpoints.ready or exchange.began:
            phase = _phase(exchange, now)
            service.series.expired[phase] += 1
            message = f"The deadline of the request has passed (phase: {phase})."
            raise ApiError("deadline_exceeded", message)
        else:
            service.series.expired["start"] += 1
            why = service.trouble or "No worker became ready while the request could wait."
            raise ApiError(
                "starting",
                f"{why} (phase: start)",
                retry_after=service.admission.retry_after(now),
            )


def _moment(exchange: Exchange) -> float:
    """When it is given up, as things stand; a stream, when nothing more has come for too long."""
    service = exchange.service
    if exchange.began and exchange.relay is not None:
        limits = service.limits
        pause = limits.token_timeout_seconds or limits.timeout_seconds
        return min(exchange.relay.last + pause, _end_of_stream(exchange))
    return deadline(service, exchange.since, exchange.cap)


def _end_of_stream(exchange: Exchange) -> float:
    """When a stream must have ended, however steadily it comes."""
    service = exchange.service
    since = max(exchange.request.received, service.ready_since)
    return min(since + service.limits.stream_timeout_seconds, exchange.cap)


def _phase(exchange: Exchange, now: float) -> str:
    """What it was waiting for when its time was over."""
    if exchange.began:
        return "total" if now >= _end_of_stream(exchange) else "between-tokens"
    return exchange.forward.phase if exchange.forward is not None else "shared"
