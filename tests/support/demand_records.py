"""Demand records of one service for scaling tests, numbered by gateway."""

from typing import Any

from sluice_api import wire


class Gateway:
    """Writes the records that one gateway would send."""

    def __init__(self, name: str = "gateway-1") -> None:
        self.name = name
        self._sequence = 0

    def record(self, *, interval_seconds: float = 1.0, **counts: Any) -> wire.Demand:
        self._sequence += 1
        return wire.Demand(
            sequence=self._sequence,
            gateway=self.name,
            namespace="default",
            service="minilm",
            revision="4f1c2ab9d0",
            interval_seconds=interval_seconds,
            **counts,
        )

    def served(self, rate: int, *, capacity: float, **counts: Any) -> wire.Demand:
        """A second in which ``rate`` requests came and were answered."""
        return self.record(
            arrivals=rate, completions=rate, service_seconds=rate / capacity, **counts
        )
