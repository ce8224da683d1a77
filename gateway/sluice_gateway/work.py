"""What an exchange has computed at a worker, perhaps for others who wait for the same.

``computation`` and ``broadcast`` derive from it: the one for answers that come whole, the other for
streams.
"""

from sluice_gateway.cache import ResponseCache
from sluice_gateway.coalesce import Flights
from sluice_gateway.exchange import Exchange
from sluice_gateway.forward import Forward
from sluice_gateway.lease import Leases
from sluice_gateway.priority import Priority


class Work:
    """Started by ``exchange``, which may leave or move to another revision before it ends.

    Args:
        flights: where the results land for all who wait; None when they are for this exchange only.
    """

    __slots__ = (
        "_binding",
        "_cache",
        "_exchange",
        "_flights",
        "_forward",
        "_keys",
        "_leases",
        "_owner",
        "_scope",
        "_service",
    )

    def __init__(self, exchange: Exchange, cache: ResponseCache, flights: Flights | None) -> None:
        self._exchange = exchange
        # As it is now: should the exchange move to another revision, others may wait for this.
        self._service = exchange.service
        self._binding = exchange.binding
        self._keys = exchange.keys
        self._owner = exchange.owner
        self._scope = exchange.tenant.scope.wire
        self._cache = cache
        self._flights = flights
        self._leases: Leases | None = None
        self._forward: Forward | None = None

    @property
    def priority(self) -> Priority:
        return self._exchange.priority

    def hurry(self, priority: Priority) -> None:
        """Somebody more urgent waits for it."""
        self._exchange.urged = priority
        if self._forward is not None:
            self._forward.hurry(priority)
