"""A job whose answer comes as a stream: its events are passed on while the worker still writes.

``broadcast`` starts a :class:`StreamForward`. Up to the first event for the caller it is a
``Forward`` like any other, retries included; from then on whatever goes wrong is told, once.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from sluice_api import names
from sluice_api.call import Item
from sluice_api.errors import ApiError
from sluice_api.shapes.generated import DONE
from sluice_gateway.endpoint import Lease
from sluice_gateway.events import EventScanner
from sluice_gateway.forward import Forward, Job
from sluice_gateway.service import Service
from sluice_gateway.worker_answer import UpstreamAnswer
from sluice_gateway.worker_errors import told_error

WANTS_ITEM: Final = b"%b: 1\r\n" % names.WANTS_ITEM.encode()
"""Asks a worker for the item and the usage beside the caller's own events."""

_WORKERS_FAULT: Final = frozenset(("internal_error", "upstream_failed"))

log = logging.getLogger(__name__)


class StreamForward(Forward):
    """One streamed job on its way.

    Args:
        keeps_usage: the caller wants the chunk that counts the tokens.
        on_events: called with whole events and the time, as they come.
        on_answer: called after the last of them with the answer's head and its items.
        on_error: called instead when the job failed for good, before or after the first event.
    """

    __slots__ = ("_answer", "_keeps_usage", "_neighbours", "_on_events", "_scanner")

    def __init__(
        self,
        service: Service,
        job: Job,
        *,
        keeps_usage: bool,
        on_events: Callable[[bytes, float], None],
        on_answer: Callable[[UpstreamAnswer, list[Item]], None],
        on_error: Callable[[ApiError], None],
    ) -> None:
        super().__init__(service, job, on_answer, on_error)
        self._keeps_usage = keeps_usage
        self._on_events = on_events
        self._answer: UpstreamAnswer | None = None
        self._scanner = EventScanner(keeps_usage=keeps_usage)
        self._neighbours = 0

    def _until(self) -> float:
        """Its last moment: how long it may be silent is judged here, and differs by caller."""
        return self._job.cap

    def hold(self, on: bool) -> None:
        """Have the worker wait, or go on."""
        if self._connection is not None and self._connection.serves(self):
            if on:
                self._connection.pause()
            else:
                self._connection.resume()

    # From admission -------------------------------------------------------------------------------

    def granted(self, lease: Lease) -> None:
        self._neighbours = lease.endpoint.in_flight
        self._answer = None
        self._scanner = EventScanner(keeps_usage=self._keeps_usage)
        super().granted(lease)

    # From upstream --------------------------------------------------------------------------------

    def answered(self, answer: UpstreamAnswer) -> None:
        if answer.status == 200:
            self._failed("garbage")  # A stream was asked for.
        else:
            super().answered(answer)

    def began(self, answer: UpstreamAnswer) -> None:
        assert self._lease is not None
        self._answer = answer
        self._lease.endpoint.heard(answer, time.monotonic())

    def part(self, data: bytes) -> None:
        lease, scanner, now = self._lease, self._scanner, time.monotonic()
        assert lease is not None
        lease.endpoint.answered_at = now
        try:
            events = scanner.feed(data)
        except ValueError as error:
            self._not_understood(error)
            return
        if events:
            self._begun = True
            self._service.series.stream_chunks += 1
            self._on_events(events, now)
        if scanner.error is not None and self._lease is not None:
            self._told(told_error(scanner.error))

    def ended(self) -> None:
        assert self._lease is not None
        assert self._answer is not None
        try:
            self._scanner.finish()
        except ValueError as error:
            self._not_understood(error)
            return
        now, answer = time.monotonic(), self._answer
        self._succeeded(answer, self._service_seconds(now), now)
        self._let_go()
        self._service.series.stream_chunks += 1
        self._on_events(DONE, now)
        self._on_answer(answer, self._scanner.items)

    # ----------------------------------------------------------------------------------------------

    def _service_seconds(self, now: float) -> float:
        """The share of the worker that the stream took: its time, divided among its neighbours.

        A worker cannot say so in the head of an answer that it has not computed yet.
        """
        assert self._lease is not None
        neighbours = (self._neighbours + self._lease.endpoint.in_flight) / 2
        return (now - self._sent) / max(1.0, neighbours)

    def _not_understood(self, error: ValueError) -> None:
        assert self._lease is not None
        log.warning(
            "worker stream not understood",
            extra={"endpoint": self._lease.endpoint.url, "reason": str(error)},
        )
        self._failed("garbage")

    def _told(self, error: ApiError) -> None:
        """The worker itself says in the stream that it cannot go on."""
        assert self._lease is not None
        if not self._begun and error.status >= 500:
            self._failed(f"status_{error.status}")
            return
        if error.code in _WORKERS_FAULT:
            self._lease.endpoint.failed(time.monotonic(), "stream", prove=False)
        self._let_go()
        self._on_error(error)
