"""Answers that are computed anew behind their callers' backs, because their time is nearly up.

``dispatch`` hands in an exchange that was answered from the cache and says which of its answers to
renew. That is work of the gateway's own: bounded, never for a key twice at once, only while a
worker is ready and nobody waits, and nobody's demand. What comes of it goes into the cache.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final

from sluice_api.call import Call
from sluice_api.routes import CANONICAL_ROUTES, canonical_body
from sluice_api.tasks import Task
from sluice_gateway.auth import Tenant
from sluice_gateway.exchange import Exchange
from sluice_gateway.head import Head, parse_head
from sluice_gateway.lease import MAX_KEYS, Leases
from sluice_gateway.request import OwnCaller, Request
from sluice_gateway.service import Service

MAX_RUNNING: Final = 32
"""Requests for renewal at once in one process; a further one is left to the next reader."""
MAX_INPUTS: Final = MAX_KEYS
"""Inputs of one request that are renewed together."""
LEASE_SECONDS: Final = 10.0
"""How long no other gateway renews the same, should this one not come to an end."""

Serve = Callable[[Request, Tenant, Service], None]


class Renewals:
    """What is being renewed.

    Args:
        serve: answers a request of the gateway's own.
        leases: by which only one of several gateways renews an answer.
    """

    def __init__(self, serve: Serve, leases: Leases | None) -> None:
        self._serve = serve
        self._leases = leases
        self._keys: set[bytes] = set()
        self._running = 0

    def __repr__(self) -> str:
        return f"<Renewals {self._running} running>"

    def want(self, exchange: Exchange, now: float) -> None:
        """Compute the answers at ``exchange.renew`` anew, if now is a time for it."""
        service, request = exchange.service, exchange.request
        if request.background or service.removed or exchange.binding is not service.binding:
            return
        if not service.endpoints.ready or service.held or self._running >= MAX_RUNNING:
            service.series.renewals["skipped"] += 1
            return
        keys = {exchange.keys[index]: index for index in exchange.renew}
        new = {key: index for key, index in keys.items() if key not in self._keys}
        if not new:
            return
        chosen = dict(list(new.items())[:MAX_INPUTS])
        self._keys.update(chosen)
        self._running += 1
        start = partial(self._start, exchange, chosen, now)
        if self._leases is not None and self._leases.available:
            self._leases.take(list(chosen), LEASE_SECONDS, start)
        else:
            start([None] * len(chosen))

    def _start(
        self, exchange: Exchange, chosen: dict[bytes, int], now: float, taken: list[bool | None]
    ) -> None:
        """Renew what nobody else renews already."""
        call, service = exchange.call, exchange.service
        mine = [
            index
            for (index, leased) in zip(chosen.values(), taken, strict=True)
            if leased is not False
        ]
        ended = partial(self._ended, service, chosen)
        if not mine:
            ended(None)
            return
        assert call.task is not None
        self._serve(
            Request(
                _head(call.task),
                _body(call, mine),
                OwnCaller(lambda answer: ended(answer.status)),
                exchange.request.id[:100] + b".renewal",
                now,
                background=True,
            ),
            exchange.tenant,
            service,
        )

    def _ended(self, service: Service, keys: dict[bytes, int], status: int | None) -> None:
        """With the status of the answer; None where others renew it."""
        self._running -= 1
        self._keys.difference_update(keys)
        if self._leases is not None:
            for key in keys:
                self._leases.done(key)
        outcome = "skipped" if status is None else "done" if status == 200 else "failed"
        service.series.renewals[outcome] += 1


def _body(call: Call, indexes: list[int]) -> bytes:
    return canonical_body(call, [call.inputs[index] for index in indexes])


@lru_cache(maxsize=64)
def _head(task: Task) -> Head:
    path = CANONICAL_ROUTES[task].path.encode()
    return parse_head(b"POST %b HTTP/1.1\r\nhost: sluice\r\ncache-control: no-cache\r\n\r\n" % path)
