"""The cache as the main path asks it: by a request's very bytes, then by the keys of its inputs.

``dispatch`` asks before anything is computed, and has whole answers remembered that were asked for
again.
"""

import time
from collections.abc import Callable

from sluice_gateway.auth import Tenant
from sluice_gateway.cache import Hit, ResponseCache
from sluice_gateway.cache_status import hit_headers
from sluice_gateway.exchange import Exchange
from sluice_gateway.freshness import Use, judge
from sluice_gateway.head import PLAIN
from sluice_gateway.keys import Keyring, item_keys
from sluice_gateway.request import STREAM_HEADERS, Answer, Request
from sluice_gateway.service import Binding, Service


class Lookup:
    """What has been answered before."""

    def __init__(self, keyring: Keyring, cache: ResponseCache) -> None:
        self._keyring = keyring
        self._cache = cache

    def __repr__(self) -> str:
        return f"<Lookup in {self._cache!r}>"

    def whole(self, request: Request, tenant: Tenant) -> tuple[Service, Answer] | None:
        """The answer to exactly this body, by a service that has not changed since."""
        if not self._cache.has_memory:
            return None
        head = request.head
        directives = head.directives
        if directives is not PLAIN and (directives.no_cache or directives.no_store):
            return None
        now = time.time()
        known = self._cache.alias(head.path, tenant.scope, request.body, now)
        if known is None:
            return None
        assert isinstance(known.binding, tuple)
        binding, rights = known.binding
        assert isinstance(binding, Binding)
        service = binding.service
        age = now - known.created
        if age < 0:
            age = 0.0
        if service.binding is not binding or service.removed or rights is not tenant.rights:
            return None
        epochs = self._cache.epochs
        if epochs.version and known.epoch != epochs.of(
            _full_name(service), service.scope(tenant).wire
        ):
            return None
        if directives is not PLAIN and (
            judge(age, known.expires - now, binding.cache, directives) is not Use.FRESH
        ):
            return None
        lines = binding.header + known.headers + request.limit_lines
        headers = hit_headers(known.expires - now, age, lines)
        return service, Answer(200, known.content_type, headers, known.answer)

    def name(self, exchange: Exchange) -> None:
        """Give each of its inputs the key that its answer is kept under."""
        service, call, binding = exchange.service, exchange.call, exchange.binding
        scope = service.scope(exchange.tenant)
        epochs = self._cache.epochs
        if epochs.version:
            exchange.epoch = epochs.of(_full_name(service), scope.wire)
        shared = binding.cache.sharing == "service"
        exchange.owner = b"service:" + _full_name(service).encode() if shared else scope.wire
        exchange.keys = item_keys(
            self._keyring,
            scope,
            revision=binding.revision,
            answer_digest=binding.answer_digest,
            task=service.keyed_as(call),
            parameters=call.canonical_parameters(),
            items=call.inputs,
            epoch=exchange.epoch,
        )

    def find(self, exchange: Exchange, found: Callable[[list[Hit | None]], None]) -> None:
        """Call ``found`` with what is kept of its answers, now or later, unless it ends before."""
        exchange.cancel_lookup = self._cache.fetch(
            exchange.keys, found, exchange.tenant.scope.wire, exchange.owner
        )

    def remember(self, exchange: Exchange, named: str | None, answer: Answer) -> None:
        """Keep a whole answer that came from the cache.

        Only what was asked for again is worth a second place in memory; and without a name, which
        service is meant depends on which services there are.
        """
        call = exchange.call
        hit = exchange.hits == len(call.inputs)
        if named is None or not hit or not exchange.binding.alone or not self._cache.has_memory:
            return
        self._cache.remember(
            exchange.request.head.path,
            exchange.tenant.scope,
            exchange.request.body,
            answer.body,
            (exchange.binding, exchange.tenant.rights),
            exchange.expires,
            created=time.time() - exchange.oldest,
            epoch=exchange.epoch,
            seconds=exchange.slowest,
            owner=exchange.owner,
            content_type=answer.content_type,
            headers=STREAM_HEADERS if call.stream is not None else b"",
        )


def _full_name(service: Service) -> str:
    return f"{service.namespace}/{service.name}"
