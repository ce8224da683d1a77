"""Answers that a service's owner wants to be there before anybody asks.

Each revision's list is asked for through the ordinary main path once a worker is ready and its
digest known, one request at a time, only while nobody waits, and again before the answers expire.
What Redis has already is not computed anew. None of it counts as demand: it wakes nobody and keeps
nobody awake. ``app`` owns the one :class:`Precompute` of a process.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Final

import msgspec

from sluice_api import names, wire
from sluice_api.routes import CANONICAL_ROUTES
from sluice_api.tasks import Task
from sluice_gateway.auth import Rights, Tenant
from sluice_gateway.dispatch import Dispatcher
from sluice_gateway.head import Head, parse_head
from sluice_gateway.request import Answer, OwnCaller, Request
from sluice_gateway.service import Service

TICK_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 30.0
RENEW_AT: Final = 0.8
"""Share of its time to live after which an answer is computed anew."""
_PERMANENT: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
"""The request itself is at fault: only another list or another revision can help."""

log = logging.getLogger(__name__)


class Progress:
    """How far one revision's list has come.

    Attributes:
        binding: what the answers hold for; with another one everything begins again, and so it
            does with other ``entries``.
        due: when each entry is asked for next; never again where the same answer is certain.
        answered: indexes of what was answered once: from then on it is computed anew.
        failed: indexes of what failed the last time.
        tenant: who asks.
    """

    __slots__ = ("answered", "binding", "due", "entries", "failed", "running", "tenant")

    def __init__(self, service: Service, entries: list[wire.Precomputed]) -> None:
        self.binding = service.binding
        self.tenant = _on_behalf_of(service)
        self.entries = entries
        self.due = [0.0] * len(entries)
        self.answered: set[int] = set()
        self.failed: set[int] = set()
        self.running = False

    def __repr__(self) -> str:
        return f"<Progress {self.counts()}>"

    def counts(self) -> dict[str, int]:
        """By state; what is being renewed is done all the while."""
        done, failed = len(self.answered - self.failed), len(self.failed)
        return {"done": done, "pending": len(self.entries) - done - failed, "failed": failed}

    def turn(self, now: float) -> int | None:
        """The entry that has been due longest, if there is one."""
        index = min(range(len(self.due)), key=self.due.__getitem__)
        return index if self.due[index] <= now else None

    def settle(self, index: int, answer: Answer, now: float) -> None:
        """Take note of how an entry was answered, and when it is due again.

        What came from the cache is renewed when as much of its time is left as of a new one's.
        """
        status = answer.status
        if status == HTTPStatus.OK:
            self.answered.add(index)
            self.failed.discard(index)
            ttl = self.binding.cache.ttl_seconds
            left = ttl if answer.fresh_for is None else answer.fresh_for
            self.due[index] = now + max(0.0, left - (1 - RENEW_AT) * ttl)
        else:
            self.failed.add(index)
            self.due[index] = math.inf if status in _PERMANENT else now + RETRY_SECONDS


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
            progress = self._progress[service] = Progress(service, entries)
        service.precomputed = progress.counts()
        idle = service.endpoints.ready and not service.held
        if progress.running or not idle or not binding.answer_digest:
            return
        index = progress.turn(now)
        if index is None:
            return
        progress.running = True
        entry = entries[index]
        request = Request(
            _head(entry.task, index in progress.answered),
            msgspec.json.encode(entry.body),
            OwnCaller(partial(self._answered, service, progress, index, entry.task)),
            self._new_id(),
            now,
            background=True,
        )
        self._dispatcher.serve(request, progress.tenant, service)

    def _answered(
        self, service: Service, progress: Progress, index: int, task: Task, answer: Answer
    ) -> None:
        progress.running = False
        was_pending = progress.counts()["pending"]
        progress.settle(index, answer, time.monotonic())
        if answer.status != HTTPStatus.OK:
            log.warning(
                "precomputing failed",
                extra={
                    "service": f"{service.namespace}/{service.name}",
                    "field": f"spec.cache.precompute[{index}]",
                    "task": str(task),
                    "answer": answer.body.decode(errors="replace")[:500],
                    "then": "not asked for again until the list or the revision is another"
                    if progress.due[index] == math.inf
                    else f"asked for again in {RETRY_SECONDS:.0f} s",
                },
            )
        counts = progress.counts()
        if was_pending and not counts["pending"]:
            log.info(
                "precomputed",
                extra={
                    "service": f"{service.namespace}/{service.name}",
                    "revision": progress.binding.revision,
                    "count": counts["done"],
                    "failed": counts["failed"],
                },
            )
        # From the loop, so that a long list of answers that are there does not nest.
        asyncio.get_running_loop().call_soon(self._look_after, service)


def _on_behalf_of(service: Service) -> Tenant:
    """Who asks in the service's name, and so may call what its namespace may, and nothing else.

    What is computed is shared by the service; no tenant's scope is ever used.
    """
    name = f"{names.MANAGER} precompute"
    own = Rights(frozenset((service.namespace,)), None)
    return Tenant(name, service.namespace, b"", service.shared_scope, rights=own)


@lru_cache(maxsize=64)
def _head(task: Task, renew: bool) -> Head:
    path = CANONICAL_ROUTES[task].path.encode()
    anew = b"cache-control: no-cache\r\n" if renew else b""
    return parse_head(b"POST %b HTTP/1.1\r\nhost: sluice\r\n%b\r\n" % (path, anew))
