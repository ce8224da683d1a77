"""A bounded map in memory: the cache's first layer, on the loop and without any I/O.

Bounded in bytes. What to throw out is decided by SIEVE (Zhang et al., NSDI 2024): entries stand in
the order they came, a hand walks from old to new, spares what was hit since it last passed and
takes the first that was not. A scan of entries that are never asked for again passes through
without driving out what is in use, and a hit costs one flag instead of a move in a list.

Each owner has a ring of entries of its own, and room is made in a large one: one alone may fill
everything, but nobody drives out who holds less than a fair share.
"""

from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

import msgspec

V = TypeVar("V")

ENTRY_OVERHEAD: Final = 248
"""Bytes that one entry costs beside its key and value: its node and its slot in the dict."""

_MAX_STEPS: Final = 1000
"""Entries the hand may spare in a row; bounds the time one ``put`` can take to about 50 µs."""
_FAIR: Final = 0.9
"""Share of what owners hold on average below which nobody is driven; comparing all of them for
every entry would cost more."""


class LocalCache(Generic[V]):
    """Keys to values, each until it expires or has to make room.

    Args:
        capacity_bytes: bound on the sum of all sizes, overhead included; 0 keeps nothing.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.evictions = 0
        self._nodes: dict[Hashable, _Node[V]] = {}
        self._rings: dict[Hashable, _Ring[V]] = {}
        self._largest: _Ring[V] | None = None

    def get(self, key: Hashable, now: float) -> V | None:
        """The value of ``key``, or None when it is absent or expired."""
        node = self._nodes.get(key)
        if node is None:
            return None
        if node.expires <= now:
            self._remove(node)
            return None
        node.hit = True
        return node.value

    def put(
        self,
        key: Hashable,
        value: V,
        size_bytes: int,
        expires: float,
        now: float,
        owner: Hashable = None,
    ) -> bool:
        """Keep ``value`` until ``expires``, in place of what ``key`` had.

        Args:
            size_bytes: what key and value take.
            owner: whose share of the room it takes.

        Returns:
            False when it was not kept: expired already, or too large a share of the cache.
        """
        if (old := self._nodes.get(key)) is not None:
            self._remove(old)
        size = size_bytes + ENTRY_OVERHEAD
        if expires <= now or size * 8 > self.capacity_bytes:
            return False
        while self.used_bytes + size > self.capacity_bytes:
            self._evict(now)
        ring = self._rings.get(owner)
        if ring is None:
            ring = self._rings[owner] = _Ring(owner)
        newest = ring.ends.older
        node = _Node(key, value, size, expires, ring, newest, ring.ends)
        newest.newer = ring.ends.older = node
        ring.used_bytes += size
        self._nodes[key] = node
        self.used_bytes += size
        return True

    def share(self, owner: Hashable) -> int:
        """Bytes that ``owner`` holds now."""
        ring = self._rings.get(owner)
        return 0 if ring is None else ring.used_bytes

    def clear(self) -> None:
        """Forget everything."""
        for node in list(self._nodes.values()):
            self._remove(node)

    def _evict(self, now: float) -> None:
        largest, fair = self._largest, _FAIR * self.used_bytes / len(self._rings)
        if largest is None or largest.used_bytes < fair:
            largest = max(self._rings.values(), key=lambda ring: ring.used_bytes)
            self._largest = largest
        self.evictions += 1
        self._remove(largest.victim(now))

    def _remove(self, node: "_Node[V]") -> None:
        ring = node.ring
        if ring.hand is node:
            ring.hand = node.newer
        node.unlink()
        del self._nodes[node.key]
        self.used_bytes -= node.size
        ring.used_bytes -= node.size
        if not ring.used_bytes:
            del self._rings[ring.owner]
            if self._largest is ring:
                self._largest = None

    def __len__(self) -> int:
        return len(self._nodes)

    def __repr__(self) -> str:
        return (
            f"<LocalCache {len(self._nodes)} entries of {len(self._rings)} owners, "
            f"{self.used_bytes} of {self.capacity_bytes} bytes, {self.evictions} evicted>"
        )


class _Ring(Generic[V]):
    """The entries of one owner, oldest to newest; both ends meet in one node without a value."""

    __slots__ = ("ends", "hand", "owner", "used_bytes")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.used_bytes = 0
        nothing: Any = None
        self.ends: _Node[V] = _Node(nothing, nothing, 0, 0.0, self, nothing, nothing)
        self.ends.older = self.ends.newer = self.hand = self.ends

    def victim(self, now: float) -> "_Node[V]":
        """Which of the entries, of which there is one at least, goes next."""
        node = self.hand
        for _ in range(_MAX_STEPS):
            if node is self.ends:
                node = node.newer  # From the newest on to the oldest.
            if not node.hit or node.expires <= now:
                break
            node.hit = False
            node = node.newer
        if node is self.ends:
            node = node.newer
        self.hand = node
        return node


class _Node(msgspec.Struct, Generic[V], eq=False):
    """An entry in its owner's ring, between an older one and a newer one."""

    key: Hashable
    value: V
    size: int
    expires: float
    ring: "_Ring[V]"
    older: "_Node[V]"
    newer: "_Node[V]"
    hit: bool = False

    def unlink(self) -> None:
        self.older.newer = self.newer
        self.newer.older = self.older
