"""Answers that a service's owner wants to be there before anybody asks.

Each revision's list is asked for through the ordinary main path once a worker is ready and its
digest known, one request at a time, only while nobody waits, and again before the answers expire.
What Redis has already is not computed anew. None of it counts as demand: it wakes nobody and keeps
nobody awake. ``app`` owns the one :class:`Precompute` of a process.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final

import msgspec

from sluice_api import names, wire
from sluice_api.routes import CANONICAL_ROUTES
from sluice_api.tasks import Task
from sluice_gateway.auth import Tenant
from sluice_gateway.dispatch import Dispatcher
from sluice_gateway.head import Head, parse_head
from sluice_gateway.keys import TenantScope
from sluice_gateway.request import Answer, OwnCaller, Request
from sluice_gateway.service import Binding, Service

TICK_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 30.0
RENEW_AT: Final = 0.8
"""Share of its time to live after which an answer is computed anew."""

log = logging.getLogger(__name__)


class Progress:
    """How far one revision's list has come.

    Attributes:
        binding: what the answers hold for; with another one everything begins again, and so it
            does with other ``entries``.
        pending: indexes to be asked for; ``failed`` those that are tried again at ``due``.
        renewing: answers are computed although there are some.
    """

    __slots__ = ("binding", "due", "entries", "failed", "pending", "renewing", "running")

    def __init__(self, binding: Binding, entries: list[wire.Precomputed]) -> None:
        self.binding = binding
        self.entries = entries
        self.pending = deque(range(len(entries)))
        self.failed: set[int] = set()
        self.running = False
        self.renewing = False
        self.due = 0.0

    def __repr__(self) -> str:
        return f"<Progress {self.counts()}>"

    @property
    def total(self) -> int:
        return len(self.entries)

    def counts(self) -> dict[str, int]:
        """By state; what is being renewed is done all the while."""
        pending = 0 if self.renewing else len(self.pending) + self.running
        failed = len(self.failed)
        return {"done": self.total - pending - failed, "pending": pending, "failed": failed}

    def turn(self, now: float) -> None:
        """Begin again where it is time: with what failed, or with everything."""
        if self.pending or now < self.due:
            return
        self.renewing = not self.failed
        self.pending.extend(sorted(self.failed) or range(self.total))
        self.failed.clear()


class Precompute:
    """All lists of all services.

    Args:
        tracks: called for the services there are now, canaries included.
        new_id: makes request ids.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        tracks: Callable[[], list[Service]],
        new_id: Callable[[], bytes],
    ) -> None:
        self._dispatcher = dispatcher
        self._tracks = tracks
        self._new_id = new_id
        self._progress: dict[Service, Progress] = {}
        # What is computed here is shared by the service; no tenant's scope is ever used.
        name = f"{names.MANAGER} precompute"
        self._tenant = Tenant(name, names.DEFAULT_NAMESPACE, b"", TenantScope.service_wide())

    def __repr__(self) -> str:
        return f"<Precompute for {len(self._progress)} revisions>"

    async def run(self) -> None:
        """Look after the lists until cancelled."""
        while True:
            tracks = self._tracks()
            for service in self._progress.keys() - set(tracks):
                del self._progress[service]
            for service in tracks:
                if service.precompute or service in self._progress:
                    self._look_after(service)
            await asyncio.sleep(TICK_SECONDS)

    def _look_after(self, service: Service) -> None:
        try:
            self._advance(service)
        except Exception:  # One service's list must not end everybody's.
            log.exception("precomputing failed", extra={"service": repr(service)})

    def _advance(self, service: Service) -> None:
        """Ask for the next answer, if there is one to be asked for now."""
        entries, binding, now = service.precompute, service.binding, time.monotonic()
        progress = self._progress.get(service)
        if progress is None or progress.binding is not binding or progress.entries != entries:
            if not entries:
                self._progress.pop(service, None)
                service.precomputed = {}
                return
            progress = self._progress[service] = Progress(binding, entries)
        service.precomputed = progress.counts()
        idle = service.endpoints.ready and not service.held
        if progress.running or not idle or not binding.answer_digest:
            return
        progress.turn(now)
        if not progress.pending:
            return
        index = progress.pending.popleft()
        progress.running = True
        entry = entries[index]
        request = Request(
            _head(entry.task, progress.renewing),
            msgspec.json.encode(entry.body),
            OwnCaller(partial(self._answered, service, progress, index, entry.task)),
            self._new_id(),
            now,
            background=True,
        )
        self._dispatcher.serve(request, self._tenant, service)

    def _answered(
        self, service: Service, progress: Progress, index: int, task: Task, answer: Answer
    ) -> None:
        progress.running = False
        if answer.status != 200:
            progress.failed.add(index)
            log.warning(
                "precomputing failed",
                extra={
                    "service": f"{service.namespace}/{service.name}",
                    "request": index,
                    "task": str(task),
                    "answer": answer.body.decode(errors="replace")[:500],
                },
            )
        if not progress.pending:
            self._completed(service, progress)
        # From the loop, so that a long list of answers that are there does not nest.
        asyncio.get_running_loop().call_soon(self._look_after, service)

    def _completed(self, service: Service, progress: Progress) -> None:
        failed = len(progress.failed)
        pause = RETRY_SECONDS if failed else RENEW_AT * progress.binding.cache.ttl_seconds
        progress.due = time.monotonic() + pause
        progress.renewing = False
        log.info(
            "precomputed",
            extra={
                "service": f"{service.namespace}/{service.name}",
                "revision": progress.binding.revision,
                "count": progress.total - failed,
                "failed": failed,
            },
        )


@lru_cache(maxsize=64)
def _head(task: Task, renew: bool) -> Head:
    path = CANONICAL_ROUTES[task].path.encode()
    anew = b"cache-control: no-cache\r\n" if renew else b""
    return parse_head(b"POST %b HTTP/1.1\r\nhost: sluice\r\n%b\r\n" % (path, anew))
