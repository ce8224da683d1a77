"""Whose turn it is to move to the current worker image: a few services at a time.

Asked by ``reconcile`` while the platform team has ``upgradeWorkers`` on. A service keeps its turn
until its pods are replaced; so a broken image stops after the first few and the others run on. What
was broken before says nothing of the image, and holds the others up for a while only.
"""

import math
from typing import Final

from sluice_operator import kinds
from sluice_operator.state import Key, Observed
from sluice_operator.workers import is_behind, is_rolling

AT_ONCE: Final = 3
LOOK_SECONDS: Final = 10.0
"""How often one that waits for its turn looks whether it has come."""
BROKEN_SECONDS: Final = 300.0
"""How long a service keeps its turn that did not run as it should when the turn came."""


class Turns:
    """Services that are being moved, and those that have been."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._moving: dict[Key, float] = {}  # until when at most
        self._moved: set[Key] = set()

    def __repr__(self) -> str:
        return f"<Turns {len(self._moving)} moving, {len(self._moved)} moved>"

    def take(self, key: Key, now: float, *, sound: bool) -> bool:
        """Whether ``key`` may be moved now; it keeps the turn until :meth:`end`.

        Args:
            now: monotonic.
            sound: whether it runs as it should; otherwise it may never come to its end.
        """
        for late in [moving for moving, until in self._moving.items() if until <= now]:
            self.end(late)
        if key in self._moved or key in self._moving:
            return True
        if len(self._moving) >= self._at_once:
            return False
        self._moving[key] = math.inf if sound else now + BROKEN_SECONDS
        return True

    def end(self, key: Key) -> None:
        """Nothing is left to be moved, or nothing to wait for."""
        if self._moving.pop(key, None) is not None:
            self._moved.add(key)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._moving.pop(key, None)
        self._moved.discard(key)


def is_replaced(observed: Observed) -> bool:
    """Whether every pod is as its Deployment says now."""
    for key, child in observed.children.items():
        if key.kind != kinds.DEPLOYMENT.name:
            continue
        if is_behind(child) or is_rolling(child):
            return False
        ready = (child.get("status") or {}).get("readyReplicas", 0)
        if ready < child["spec"].get("replicas", 1):
            return False
    return True
