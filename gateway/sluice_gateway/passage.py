"""A request that is forwarded as it came, and whose answer goes back as the worker wrote it.

``dispatch`` starts a :class:`Passage` for what is neither looked up nor shared nor stored.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_gateway.endpoint import Lease
from sluice_gateway.exchange import Exchange
from sluice_gateway.forward import Forward
from sluice_gateway.hedging import make_forward
from sluice_gateway.request import Request
from sluice_gateway.service import WRITTEN, Service
from sluice_gateway.upstream import Connection, Receiver
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
        forward = self._forward()
        self.exchange.count()
        forward.start(time.monotonic())

    def go_on(
        self, before: Receiver, lease: Lease, connection: Connection | None, sent: float
    ) -> None:
        """Take over what ``before`` has sent to a worker."""
        self._forward().take_over(before, lease, connection, sent)

    def _forward(self) -> Forward:
        exchange = self.exchange
        request, service, call = exchange.request, exchange.service, exchange.call
        path = path_at_worker(request, service)
        read = partial(_counted, call) if call.task in WRITTEN else _not_counted
        job = exchange.job(path, request.body, exchange.missing, read)
        forward = make_forward(service, job, self._answered, self._failed)
        exchange.stops.append(forward.abort)
        exchange.forward = forward
        return forward

    def _answered(self, answer: UpstreamAnswer, items: list[Item]) -> None:
        self.step(self.exchange, _pass_on, answer, items)

    def _failed(self, error: ApiError) -> None:
        self.step(self.exchange, fail_with, error)


def path_at_worker(request: Request, service: Service) -> bytes:
    """Where the body is sent: under the name that the worker knows, where the path has one."""
    head = request.head
    return head.path.encode() if head.model is None else service.v2_path


def _pass_on(exchange: Exchange, answer: UpstreamAnswer, items: list[Item]) -> None:
    if items:
        tokens = sum(item.tokens for item in items)
        exchange.service.series.tokens += tokens
        exchange.use_tokens(tokens)
    exchange.worker_seconds = answer.service
    exchange.pass_on(answer.body)


def fail_with(exchange: Exchange, error: Exception) -> None:
    """The step of an exchange that cannot be taken."""
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
