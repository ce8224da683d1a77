"""Whether this gateway should get traffic: it knows its services, and it can be reached.

An ill model or a stale source never makes a gateway unready: that would take out all gateways at
once. Written by ``app``; read by the health routes on both ports.
"""

from collections.abc import Callable


class Health:
    """Ready = first table applied + the gateway has asked itself over a socket + not draining.

    Args:
        discovery_age: seconds since the source of services was last known to be good.
    """

    def __init__(self, discovery_age: Callable[[], float]) -> None:
        self._discovery_age = discovery_age
        self.synced = False
        self.reached = False
        self.draining = False

    @property
    def ready(self) -> bool:
        return self.synced and self.reached and not self.draining

    def detail(self) -> dict[str, bool | float | None]:
        return {
            "ready": self.ready,
            "synced": self.synced,
            "reached": self.reached,
            "draining": self.draining,
            "discoveryAgeSeconds": round(self._discovery_age(), 3) if self.synced else None,
        }

    def __repr__(self) -> str:
        return f"<Health {self.detail()}>"
