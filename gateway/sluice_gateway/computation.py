"""Some inputs of an exchange at a worker: how they are asked for, and who is told the answers.

``dispatch`` starts a :class:`Computation` for the inputs that it could neither find nor join. Its
results go into the cache and, when it is shared, to everybody who waits for the same keys; it stops
once nobody does any more.
"""

import time
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Final, Self

from sluice_api.call import Item
from sluice_api.errors import ApiError
from sluice_api.routes import CANONICAL_ROUTES, canonical_body, canonical_call
from sluice_gateway.cache import ResponseCache
from sluice_gateway.coalesce import Flights, Result
from sluice_gateway.exchange import Exchange
from sluice_gateway.forward import Job, is_everybodys
from sluice_gateway.hedging import make_forward
from sluice_gateway.lease import Leases
from sluice_gateway.work import Work
from sluice_gateway.worker_answer import UpstreamAnswer
from sluice_gateway.worker_errors import at_caller, refused_input

_CANONICAL: Final = {task: route.path.encode() for task, route in CANONICAL_ROUTES.items()}


class Computation(Work):
    """The inputs of ``exchange`` at ``indexes`` (complete when it starts), in one request.

    Args:
        on_result: called with index and result for each input, when ``flights`` is None.
    """

    __slots__ = ("_indexes", "_on_result", "_started", "_stopped", "_wanted", "_whole")

    def __init__(
        self,
        exchange: Exchange,
        indexes: list[int],
        cache: ResponseCache,
        flights: Flights | None,
        on_result: Callable[[Exchange, int, Result], None],
    ) -> None:
        super().__init__(exchange, cache, flights)
        self._indexes = indexes
        self._on_result = on_result
        self._wanted = 0
        self._whole = False
        self._stopped = False
        self._started = 0.0

    def __repr__(self) -> str:
        return f"<Computation of {len(self._indexes)} inputs, {self._wanted} wanted>"

    def part(self, indexes: list[int], leases: Leases) -> Self:
        """Those inputs alone, of what this was made for; other gateways are told how it ends."""
        part = copy(self)
        part._indexes = indexes
        part._leases = leases
        return part

    def start(self) -> None:
        """Queue it. A refusal is a result like any other."""
        exchange, call = self._exchange, self._exchange.call
        self._started = time.monotonic()
        self._wanted = len(self._indexes)
        self._whole = call.passthrough and self._wanted == len(call.inputs)
        exchange.count()
        self._forward = forward = make_forward(
            self._service, self._job(), self._answered, self._failed
        )
        exchange.forward = forward
        try:
            self._forward.start(time.monotonic())
        except ApiError as error:
            self._failed(error)

    def abandoned(self, index: int) -> None:
        """Nobody waits for this input any more."""
        self._wanted -= 1
        if self._wanted == 0:
            self.stop()

    def stop(self) -> None:
        self._stopped = True
        if self._leases is not None:
            for index in self._indexes:
                self._leases.free(self._keys[index])
        if self._forward is not None:
            self._forward.abort()
            self._forward = None

    def _job(self) -> Job:
        """The caller's own body where the worker's answer to it will do, else the inputs alone."""
        exchange = self._exchange
        request, call = exchange.request, exchange.call
        if self._whole:
            path, body = request.head.path.encode(), request.body
        else:
            assert call.task is not None
            path = _CANONICAL[call.task]
            inputs = [call.inputs[index] for index in self._indexes]
            body = canonical_body(call, inputs)
            call = canonical_call(call, inputs)
        read = partial(call.codec.extract, call)
        return exchange.job(path, body, len(self._indexes), read, binding=self._binding)

    def _answered(self, answer: UpstreamAnswer, items: list[Item]) -> None:
        """Store the items and hand them out."""
        self._forward = None
        exchange, flights = self._exchange, self._flights
        binding, keys = self._binding, self._keys
        now, ttl = time.time(), binding.cache.ttl_seconds
        self._service.took(time.monotonic() - self._started)
        tokens = 0
        for item in items:
            tokens += item.tokens
        self._service.series.tokens += tokens
        exchange.use_tokens(tokens)
        # Another digest than the key's would be found later as something that it is not.
        storable = self._service.judge(exchange.call, items)
        proven = storable and answer.digest == binding.answer_digest
        if exchange.binding is binding:  # Otherwise it has moved, and only others wait for this.
            exchange.worker_seconds = answer.service
            if proven:
                exchange.stored = True
                if not exchange.expires or now + ttl < exchange.expires:
                    exchange.expires = now + ttl
            if self._whole and flights is not None:
                exchange.raw = answer.body
        seconds = answer.service or 0.0
        for index, item in zip(self._indexes, items, strict=True):
            key = keys[index]
            if proven:
                self._cache.store(key, item, binding.cache, now, seconds, self._owner)
            if self._leases is not None:
                (self._leases.done if proven else self._leases.free)(key)
            if flights is not None:
                flights.land(key, item)
            elif not self._stopped:
                self._on_result(exchange, index, item)

    def _failed(self, error: ApiError) -> None:
        self._forward = None
        exchange, keys = self._exchange, self._keys
        refused = refused_input(error, exchange.call, self._indexes, whole=self._whole)
        if refused is not None:
            key, said = keys[refused[0]], refused[1]
            self._cache.refuse(key, said, self._scope, time.time(), self._owner)
        if not self._whole:
            error = at_caller(error, exchange.call, self._indexes)
        for index in self._indexes:
            if self._leases is not None:
                self._leases.fail(keys[index], error if is_everybodys(error) else None)
            if self._flights is not None:
                self._flights.land(keys[index], error)
            elif not self._stopped:
                self._on_result(exchange, index, error)
