"""LocalCache beside the plainest possible SIEVE, and beside a dict that forgets nothing."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sluice_gateway.local_cache import ENTRY_OVERHEAD, LocalCache

CAPACITY = 20 * ENTRY_OVERHEAD
keys = st.integers(0, 25)


class PlainSieve:
    """SIEVE as the paper's pseudocode, on a list from the newest to the oldest entry."""

    def __init__(self) -> None:
        self.queue: list[dict[str, Any]] = []
        self.hand: dict[str, Any] | None = None

    def find(self, key: int) -> dict[str, Any] | None:
        return next((entry for entry in self.queue if entry["key"] == key), None)

    def remove(self, entry: dict[str, Any]) -> None:
        position = next(i for i, other in enumerate(self.queue) if other is entry)
        if self.hand is entry:
            self.hand = self.queue[position - 1] if position else None
        del self.queue[position]

    def used(self) -> int:
        return sum(entry["size"] + ENTRY_OVERHEAD for entry in self.queue)

    def get(self, key: int, now: float) -> int | None:
        entry = self.find(key)
        if entry is None:
            return None
        if entry["expires"] <= now:
            self.remove(entry)
            return None
        entry["hit"] = True
        return int(entry["value"])

    def put(self, key: int, value: int, size: int, expires: float, now: float) -> None:
        if (old := self.find(key)) is not None:
            self.remove(old)
        if expires <= now or (size + ENTRY_OVERHEAD) * 8 > CAPACITY:
            return
        while self.used() + size + ENTRY_OVERHEAD > CAPACITY:
            self.evict(now)
        entry = {"key": key, "value": value, "size": size, "expires": expires, "hit": False}
        self.queue.insert(0, entry)

    def evict(self, now: float) -> None:
        entry = self.hand if self.hand is not None else self.queue[-1]
        while entry["hit"] and entry["expires"] > now:
            entry["hit"] = False
            position = next(i for i, other in enumerate(self.queue) if other is entry)
            entry = self.queue[position - 1]  # -1, the oldest, comes after the newest.
        self.hand = entry
        self.remove(entry)


class Comparison(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.count = 0
        self.cache: LocalCache[int] = LocalCache(CAPACITY)
        self.sieve = PlainSieve()
        self.all: dict[int, tuple[int, float]] = {}

    @rule(key=keys, size=st.integers(0, 500), lifetime=st.integers(0, 50))
    def put(self, key: int, size: int, lifetime: int) -> None:
        self.count += 1
        expires = self.now + lifetime
        self.sieve.put(key, self.count, size, expires, self.now)
        self.cache.put(key, self.count, size, expires, self.now)
        self.all[key] = (self.count, expires)

    @rule(key=keys)
    def get(self, key: int) -> None:
        found = self.cache.get(key, self.now)
        assert found == self.sieve.get(key, self.now)
        if found is not None:
            value, expires = self.all[key]
            assert found == value and expires > self.now

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def bounded_and_counted(self) -> None:
        assert self.cache.used_bytes == self.sieve.used() <= CAPACITY
        assert len(self.cache) == len(self.sieve.queue)


TestComparison = Comparison.TestCase
TestComparison.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
