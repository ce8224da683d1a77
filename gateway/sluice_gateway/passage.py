"""A request that is forwarded as it came, and whose answer goes back as the worker wrote it.

``dispatch`` starts a :class:`Passage` for what is neither looked up nor shared nor stored.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec

from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_api.routes import V2_PREFIX, V2_SUFFIX
from sluice_gateway.exchange import Exchange
from sluice_gateway.hedging import make_forward
from sluice_gateway.service import WRITTEN
from sluice_gateway.worker_answer import UpstreamAnswer


class Passage(msgspec.Struct, eq=False):
    """The caller's own body at a worker.

    Attributes:
        step: takes a step of the exchange; see ``Dispatcher``.
    """

    exchange: Exchange
    step: Callable[..., Any]

    def start(self) -> None:
        """Queue it. Raises ApiError when it is refused at once."""
        exchange = self.exchange
        request, service, call = exchange.request, exchange.service, exchange.call
        path = request.head.path
        if request.head.model is not None:
            path = V2_PREFIX + quote(service.name) + V2_SUFFIX
        read = partial(_counted, call) if call.task in WRITTEN else _not_counted
        job = exchange.job(path.encode(), request.body, exchange.missing, read)
        forward = make_forward(service, job, self._answered, self._failed)
        exchange.stops.append(forward.abort)
        exchange.forward = forward
        exchange.count()
        forward.start(time.monotonic())

    def _answered(self, answer: UpstreamAnswer, items: list[Item]) -> None:
        self.step(self.exchange, _pass_on, answer, items)

    def _failed(self, error: ApiError) -> None:
        self.step(self.exchange, _fail, error)


def _pass_on(exchange: Exchange, answer: UpstreamAnswer, items: list[Item]) -> None:
    if items:
        tokens = sum(item.tokens for item in items)
        exchange.service.series.tokens += tokens
        exchange.use_tokens(tokens)
    exchange.worker_seconds = answer.service
    exchange.pass_on(answer.body)


def _fail(exchange: Exchange, error: ApiError) -> None:
    raise error


def _counted(call: Call, body: bytes) -> list[Item]:
    """What the tokens of a written answer are counted by."""
    try:
        return call.codec.extract(call, body)
    except ValueError:
        return []  # An engine of the user's own may write something else.


def _not_counted(body: bytes) -> list[Item]:
    """Nobody needs to read it."""
    return []
