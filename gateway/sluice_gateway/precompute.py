"""Answers that a service's owner wants to be there before anybody asks.

Each revision's list is asked for through the ordinary main path once a worker is ready and its
digest known, one request at a time, only while nobody waits, and again before the answers expire.
What Redis has already is not computed anew. None of it counts as demand: it wakes nobody and keeps
nobody awake. ``app`` owns the one :class:`Precompute` of a process.

A body may hold a list of inputs, and is refused as a whole for one of them. Then each half of it is
asked for by itself, and so on, until the refused inputs stand alone and the others are answered, or
too many are refused.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Final

import msgspec

from sluice_api import names, wire
from sluice_api.errors import ApiError
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
MOST_DIVISIONS: Final = 256
"""Of one entry: enough for any 30 refused inputs of 2048. What is refused after that stays so."""
MOST_TOLD: Final = 20
"""Of what fails of an entry whose inputs are asked for apart, so much is logged for itself."""
_PERMANENT: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
"""The request itself is at fault: only another list or another revision can help."""

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Part:
    """Inputs that are asked for in one request: of an entry all, or some after a refusal.

    Attributes:
        index: of the entry in the list.
        listed: how many inputs its body lists; 1 for what cannot be divided.
        inputs: which of them; all, at first.
        due: when it is asked for next; never again where the same answer is certain.
        answered: it was once: from then on it is computed anew.
        failed: it did the last time.
    """

    index: int
    entry: wire.Precomputed
    listed: int
    inputs: range
    due: float = 0.0
    answered: bool = False
    failed: bool = False

    @classmethod
    def whole(cls, index: int, entry: wire.Precomputed) -> "Part":
        listed = _listed(entry)
        return cls(index, entry, listed, range(listed))

    @property
    def field(self) -> str:
        """Where it stands in the service's definition."""
        whole = f"spec.cache.precompute[{self.index}]"
        if len(self.inputs) == self.listed:
            return whole
        first, last = self.inputs[0], self.inputs[-1]
        place = f"{first}" if first == last else f"{first}:{last + 1}"
        return f"{whole}.body.{_field(self.entry)}[{place}]"

    def body(self) -> bytes:
        body = self.entry.body
        if len(self.inputs) < self.listed:
            field = _field(self.entry)
            body = {**body, field: body[field][self.inputs.start : self.inputs.stop]}
        return msgspec.json.encode(body)

    def halves(self, now: float) -> "list[Part]":
        middle = len(self.inputs) // 2
        cut = self.inputs[:middle], self.inputs[middle:]
        return [Part(self.index, self.entry, self.listed, inputs, now) for inputs in cut]


class Progress:
    """How far one revision's list has come.

    Attributes:
        binding: what the answers hold for; with another one everything begins again, and so it
            does with other ``entries``.
        tenant: who asks.
        divided: how often an entry was, by its index.
        told: how often it was logged that some of its inputs failed.
    """

    __slots__ = ("binding", "divided", "entries", "parts", "running", "tenant", "told")

    def __init__(self, service: Service, entries: list[wire.Precomputed]) -> None:
        self.binding = service.binding
        self.tenant = _on_behalf_of(service)
        self.entries = entries
        self.parts = [Part.whole(index, entry) for index, entry in enumerate(entries)]
        self.running = False
        self.divided: Counter[int] = Counter()
        self.told: Counter[int] = Counter()

    def __repr__(self) -> str:
        return f"<Progress {self.counts()}>"

    def counts(self) -> dict[str, int]:
        """Inputs by state; what is being renewed is done all the while."""
        counts = {"done": 0, "pending": 0, "failed": 0}
        for part in self.parts:
            state = "failed" if part.failed else "done" if part.answered else "pending"
            counts[state] += len(part.inputs)
        return counts

    def turn(self, now: float) -> Part | None:
        """What has been due longest, if there is anything."""
        part = min(self.parts, key=lambda each: each.due)
        return part if part.due <= now else None

    def settle(self, part: Part, answer: Answer, now: float) -> None:
        """Take note of how a part was answered, and when it, or what is left of it, is due again.

        What came from the cache is renewed when as much of its time is left as of a new one's.
        """
        status = answer.status
        if status == HTTPStatus.OK:
            part.answered, part.failed = True, False
            ttl = self.binding.cache.ttl_seconds
            left = ttl if answer.fresh_for is None else answer.fresh_for
            part.due = now + max(0.0, left - (1 - RENEW_AT) * ttl)
        elif _is_of_some(answer, part) and self.divided[part.index] < MOST_DIVISIONS:
            self.divided[part.index] += 1
            self.parts.remove(part)
            self.parts += part.halves(now)  # After the other entries.
        else:
            part.failed = True
            part.due = math.inf if status in _PERMANENT else now + RETRY_SECONDS

    def is_worth_telling(self, part: Part) -> bool:
        """Whether it is to be logged that a part failed: a list may be refused input by input."""
        if len(part.inputs) == part.listed:
            return True
        self.told[part.index] += 1
        return self.told[part.index] <= MOST_TOLD


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
        part = progress.turn(now)
        if part is None:
            return
        progress.running = True
        request = Request(
            _head(part.entry.task, part.answered),
            part.body(),
            OwnCaller(partial(self._answered, service, progress, part)),
            self._new_id(),
            now,
            background=True,
        )
        self._dispatcher.serve(request, progress.tenant, service)

    def _answered(self, service: Service, progress: Progress, part: Part, answer: Answer) -> None:
        progress.running = False
        was_pending = progress.counts()["pending"]
        progress.settle(part, answer, time.monotonic())
        if part.failed and progress.is_worth_telling(part):
            log.warning(
                "precomputing failed",
                extra={
                    "service": f"{service.namespace}/{service.name}",
                    "field": part.field,
                    "task": str(part.entry.task),
                    "answer": answer.body.decode(errors="replace")[:500],
                    "then": "not asked for again until the list or the revision is another"
                    if part.due == math.inf
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


def _field(entry: wire.Precomputed) -> str:
    """The member of its body that holds the inputs."""
    return CANONICAL_ROUTES[entry.task].codec.field


def _listed(entry: wire.Precomputed) -> int:
    """See :class:`Part`."""
    try:
        call = CANONICAL_ROUTES[entry.task].codec.parse(msgspec.json.encode(entry.body))
    except ApiError:
        return 1  # It will be refused as it is.
    # A conversation lists messages, and is one input; so is a list of token ids.
    given = entry.body.get(_field(entry))
    return len(given) if isinstance(given, list) and len(given) == len(call.inputs) else 1


def _is_of_some(answer: Answer, part: Part) -> bool:
    """Whether a part was refused for some of its inputs, so that others may be answered."""
    if len(part.inputs) == 1 or answer.status not in _PERMANENT or answer.error is None:
        return False
    param, field = answer.error.param, _field(part.entry)
    return param is None or param == field or param.startswith((f"{field}[", f"{field}."))


@lru_cache(maxsize=64)
def _head(task: Task, renew: bool) -> Head:
    path = CANONICAL_ROUTES[task].path.encode()
    anew = b"cache-control: no-cache\r\n" if renew else b""
    return parse_head(b"POST %b HTTP/1.1\r\nhost: sluice\r\n%b\r\n" % (path, anew))
