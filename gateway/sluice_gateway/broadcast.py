"""An answer that a worker streams: who follows it live, and what becomes of it at the end.

``dispatch`` starts a :class:`Broadcast` for a streamed call that nobody computes yet, as it starts
a ``Computation`` for a plain one. Everybody who asks the same in the same form follows its relay;
everybody else who asks the same waits for its item.
"""

import logging
import time
from typing import Any

from sluice_api.call import Item
from sluice_api.errors import ApiError
from sluice_gateway.cache import ResponseCache
from sluice_gateway.coalesce import Flights
from sluice_gateway.exchange import Exchange
from sluice_gateway.forward import is_everybodys
from sluice_gateway.lease import Leases
from sluice_gateway.relay import Relay
from sluice_gateway.stream_forward import WANTS_ITEM, StreamForward
from sluice_gateway.work import Work
from sluice_gateway.worker_answer import UpstreamAnswer
from sluice_gateway.worker_errors import refused_input

log = logging.getLogger(__name__)

Live = dict[bytes, "Broadcast"]
"""By key: the streams under way that others may follow."""


class Broadcast(Work):
    """The whole of ``exchange``'s call at a worker, in one stream.

    Args:
        exchange: asks in its own words; it follows :attr:`relay` like everybody.
        live: has this among it while it can be followed.
    """

    __slots__ = ("_began", "_call", "_form", "_live", "_series", "relay")

    _forward: StreamForward | None

    def __init__(
        self, exchange: Exchange, cache: ResponseCache, flights: Flights | None, live: Live
    ) -> None:
        super().__init__(exchange, cache, flights)
        self._series = exchange.service.series
        self._call = exchange.call
        self._began = time.monotonic()
        self._form = _form(exchange)
        self._live = live
        shared = flights is not None
        self.relay = Relay(shared=shared, hold=self._hold, now=exchange.request.received)

    def __repr__(self) -> str:
        return f"<Broadcast {self.relay!r}>"

    def suits(self, exchange: Exchange) -> bool:
        """Whether ``exchange``, which asks the same, may be given these very bytes."""
        return self.relay.joinable and self._form == _form(exchange)

    def lease(self, leases: Leases, seconds: float) -> None:
        """Let other gateways know of it; not waited for, because its caller wants to see it live.

        Plain requests there wait for its item; a stream does not wait for another one's end.
        """
        self._leases = leases
        leases.take(self._keys, seconds, _ignore)

    def start(self) -> None:
        """Queue it. A refusal is a result like any other."""
        exchange, call = self._exchange, self._call
        assert call.stream is not None
        request = exchange.request
        exchange.count()
        path, units = request.head.path.encode(), len(call.inputs)
        self._forward = StreamForward(
            self._service,
            exchange.job(path, request.body, units, _no_items, WANTS_ITEM),
            keeps_usage=call.stream.include_usage,
            on_events=self.relay.push,
            on_answer=self._answered,
            on_error=self._failed,
        )
        exchange.forward = self._forward
        if self._flights is not None:
            self._live[self._keys[0]] = self
        try:
            self._forward.start(time.monotonic())
        except ApiError as error:
            self._failed(error)

    def stop(self) -> None:
        """Nobody wants it any more: the worker sees its connection close."""
        self._close()
        self._let_go(None)
        if self._forward is not None:
            self._forward.abort()
            self._forward = None

    def _hold(self, on: bool) -> None:
        if self._forward is not None:
            self._forward.hold(on)

    def _answered(self, answer: UpstreamAnswer, items: list[Item]) -> None:
        """Store what was told, give it to who waits for it, and end the stream."""
        self._forward = None
        self._close()
        whole = len(items) == len(self._call.inputs)
        if not whole:
            log.warning("a worker's stream lacks its item", extra={"path": self._form[0]})
        tokens = sum(item.tokens for item in items)
        self._series.tokens += tokens
        self._exchange.use_tokens(tokens)
        self._service.took(time.monotonic() - self._began)
        storable = self._service.judge(self._call, items)
        binding, keys = self._binding, self._keys
        # Another digest than the key's would be found later as something that it is not.
        if keys and whole and storable and answer.digest == binding.answer_digest:
            for key, item in zip(keys, items, strict=True):
                self._cache.store(
                    key,
                    item,
                    binding.cache,
                    time.time(),
                    seconds=time.monotonic() - self._began,
                    owner=self._owner,
                )
                if self._leases is not None:
                    self._leases.done(key)
        else:
            self._let_go(None)
        if self._flights is not None and whole:
            self._flights.land(keys[0], items[0])
        elif self._flights is not None:
            self._flights.land(keys[0], ApiError("upstream_failed", "The worker told no item."))
        self.relay.end()

    def _failed(self, error: ApiError) -> None:
        self._forward = None
        self._close()
        self._let_go(error)
        refused = (
            refused_input(error, self._call, [0], whole=True) if len(self._keys) == 1 else None
        )
        if refused is not None:
            self._cache.refuse(self._keys[0], refused[1], self._scope, time.time(), self._owner)
        if self._flights is not None:
            self._flights.land(self._keys[0], error)
        self.relay.end(error)

    def _let_go(self, error: ApiError | None) -> None:
        if self._leases is not None:
            told = error if error is not None and is_everybodys(error) else None
            self._leases.fail(self._keys[0], told)

    def _close(self) -> None:
        self.relay.detach()  # Or the two would keep each other, and the request, alive.
        if self._flights is not None and self._live.get(self._keys[0]) is self:
            del self._live[self._keys[0]]


def _form(exchange: Exchange) -> tuple[Any, ...]:
    """What the bytes of a stream depend on beside what is asked."""
    call = exchange.call
    return exchange.request.head.path, call.model, call.stream, call.options


def _ignore(taken: list[bool | None]) -> None:
    """It is computed here in any case."""


def _no_items(body: bytes) -> list[Item]:
    return []
