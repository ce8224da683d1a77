"""The map in memory: bounded, honest about time, and not swept clean by a scan."""

import itertools
import random
import tracemalloc
from collections import OrderedDict

import pytest

from sluice_gateway.local_cache import ENTRY_OVERHEAD, LocalCache

ONE = 1000
SIZE = ONE - ENTRY_OVERHEAD
"""With its overhead, an entry of this size takes ``ONE`` byte units of the capacity."""


def put(cache: LocalCache[str], key: object, value: str = "v", expires: float = 1e9) -> bool:
    return cache.put(key, value, SIZE, expires, now=0.0)


def test_keeps_and_replaces() -> None:
    cache: LocalCache[str] = LocalCache(10 * ONE)
    assert cache.get("a", 0.0) is None
    assert put(cache, "a", "1") and put(cache, "a", "2")
    assert cache.get("a", 0.0) == "2"
    assert len(cache) == 1 and cache.used_bytes == ONE


def test_an_entry_ends_at_its_end() -> None:
    cache: LocalCache[str] = LocalCache(10 * ONE)
    put(cache, "a", expires=5.0)
    assert cache.get("a", 4.999) == "v"
    assert cache.get("a", 5.0) is None
    assert len(cache) == 0 and cache.used_bytes == 0
    assert not cache.put("b", "v", SIZE, expires=1.0, now=1.0)


def test_never_holds_more_than_its_capacity() -> None:
    cache: LocalCache[str] = LocalCache(10 * ONE)
    for number in range(100):
        assert put(cache, number)
        assert cache.used_bytes <= cache.capacity_bytes
    assert len(cache) == 10 and cache.evictions == 90


def test_one_entry_never_drives_out_most_others() -> None:
    cache: LocalCache[str] = LocalCache(10 * ONE)
    put(cache, "small")
    assert not cache.put("large", "v", 2 * ONE, 1e9, now=0.0)
    assert cache.get("small", 0.0) == "v"


def test_a_refused_replacement_does_not_leave_the_old_value() -> None:
    cache: LocalCache[str] = LocalCache(10 * ONE)
    put(cache, "a", "old")
    assert not cache.put("a", "new", 2 * ONE, 1e9, now=0.0)
    assert cache.get("a", 0.0) is None


def test_no_capacity_keeps_nothing() -> None:
    cache: LocalCache[str] = LocalCache(0)
    assert not put(cache, "a")
    assert cache.get("a", 0.0) is None


def test_what_is_in_use_survives_a_scan_of_ten_times_the_capacity() -> None:
    cache: LocalCache[str] = LocalCache(100 * ONE)
    hot = [f"hot {number}" for number in range(50)]
    for key in hot:
        put(cache, key)
    for number in range(1000):
        put(cache, f"scan {number}")
        cache.get(hot[number % 50], 0.0)
    assert sum(cache.get(key, 0.0) == "v" for key in hot) == 50


def test_what_is_expired_goes_before_what_was_hit() -> None:
    cache: LocalCache[str] = LocalCache(8 * ONE)
    for number in range(8):
        put(cache, number, expires=10.0 if number == 0 else 1e9)
        cache.get(number, 0.0)
    cache.put("new", "v", SIZE, 1e9, now=20.0)
    assert all(cache.get(number, 0.0) == "v" for number in range(1, 8))


def test_the_hand_moves_on_when_its_entry_is_removed_from_under_it() -> None:
    cache: LocalCache[str] = LocalCache(8 * ONE)
    for number in range(9):  # The last one evicts 0 and leaves the hand at 1.
        put(cache, number, expires=10.0 if number == 1 else 1e9)
    assert cache.get(1, 10.0) is None
    for number in range(9, 30):
        assert put(cache, number)
    assert len(cache) == 8


def test_counted_bytes_are_real_bytes() -> None:
    """What the process really takes for small entries is within a quarter of what is counted."""
    cache: LocalCache[bytes] = LocalCache(100_000_000)
    tracemalloc.start()
    try:
        for number in range(20_000):
            value = b"%08d" % number * 20
            cache.put(value[:32], value, 32 + 33 + 160 + 33, 1e9, now=0.0)
        real, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.75 < real / cache.used_bytes < 1.25


def test_says_what_it_holds() -> None:
    cache: LocalCache[str] = LocalCache(8 * ONE)
    put(cache, "a")
    assert repr(cache) == "<LocalCache 1 entries of 1 owners, 1000 of 8000 bytes, 0 evicted>"


# Against a scan -----------------------------------------------------------------------------------


class Lru:
    """The plainest LRU of as many entries."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: OrderedDict[object, None] = OrderedDict()

    def get(self, key: object) -> bool:
        if key not in self.entries:
            return False
        self.entries.move_to_end(key)
        return True

    def put(self, key: object) -> None:
        self.entries[key] = None
        while len(self.entries) > self.capacity:
            self.entries.popitem(last=False)


@pytest.mark.parametrize("seed", range(3))
def test_a_scan_drives_out_little_of_what_is_in_use(seed: int) -> None:
    """Half of the lookups are for a few popular keys, half go once through many others."""
    rng, scan = random.Random(seed), itertools.count()
    sieve: LocalCache[str] = LocalCache(100 * ONE)
    lru = Lru(100)
    kept = {"sieve": 0, "lru": 0}
    asked = 0
    for _ in range(10_000):
        for _ in range(3):  # Three keys of the scan for each popular one.
            once = ("scan", next(scan))
            put(sieve, once)
            lru.put(once)
        popular = ("popular", int(rng.paretovariate(1)) % 80)
        asked += 1
        if sieve.get(popular, 0.0) is not None:
            kept["sieve"] += 1
        else:
            put(sieve, popular)
        if lru.get(popular):
            kept["lru"] += 1
        else:
            lru.put(popular)
    missed = {name: 1 - hits / asked for name, hits in kept.items()}
    assert missed["sieve"] < 0.5 * missed["lru"], missed


# Owners -------------------------------------------------------------------------------------------


def test_one_owner_alone_may_fill_everything() -> None:
    cache: LocalCache[str] = LocalCache(100 * ONE)
    for number in range(300):
        cache.put(number, "v", SIZE, 1e9, 0.0, owner="anna")
    assert cache.share("anna") == 100 * ONE


def test_a_flood_by_one_drives_out_its_own() -> None:
    cache: LocalCache[str] = LocalCache(100 * ONE)
    for number in range(20):
        cache.put(("bert", number), "v", SIZE, 1e9, 0.0, owner="bert")
    for number in range(10_000):
        cache.put(("anna", number), "v", SIZE, 1e9, 0.0, owner="anna")
    assert all(cache.get(("bert", number), 0.0) for number in range(20))
    assert cache.share("anna") == 80 * ONE


def test_who_comes_later_gets_a_fair_share() -> None:
    cache: LocalCache[str] = LocalCache(120 * ONE)
    for number in range(200):
        cache.put(("anna", number), "v", SIZE, 1e9, 0.0, owner="anna")
    for number in range(2000):
        owner = ("bert", "cleo")[number % 2]
        cache.put((owner, number), "v", SIZE, 1e9, 0.0, owner=owner)
    shares = {owner: cache.share(owner) for owner in ("anna", "bert", "cleo")}
    assert sum(shares.values()) == 120 * ONE
    assert all(34 * ONE <= share <= 48 * ONE for share in shares.values()), shares


def test_what_is_gone_leaves_no_owner_behind() -> None:
    cache: LocalCache[str] = LocalCache(100 * ONE)
    for number in range(50):
        cache.put(number, "v", SIZE, 5.0, 0.0, owner=number)
    assert "50 entries of 50 owners" in repr(cache)
    assert all(cache.get(number, 6.0) is None for number in range(25))
    cache.clear()
    assert repr(cache).startswith("<LocalCache 0 entries of 0 owners, 0 of")
    assert put(cache, "a") and cache.get("a", 0.0) == "v"
