"""Consistent hashing: even shares, and only what must move moves."""

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from sluice_gateway.ring import Ring


@dataclass(eq=False)
class Worker:
    url: str


def workers(count: int) -> list[Worker]:
    return [Worker(f"http://10.0.0.{number}:8080") for number in range(count)]


def key(number: int) -> int:
    return int.from_bytes(blake2b(b"%d" % number, digest_size=8).digest())


KEYS = [key(number) for number in range(5000)]


def test_shares_are_about_even() -> None:
    ring: Ring[Worker] = Ring()
    ring.follow(workers(10))
    shares = Counter(ring.home(each) for each in KEYS)
    assert len(shares) == 10
    assert max(shares.values()) < 1.5 * len(KEYS) / 10
    assert min(shares.values()) > 0.5 * len(KEYS) / 10
    assert repr(ring) == "<Ring of 10>"


def test_every_gateway_draws_the_same_ring() -> None:
    one: Ring[Worker] = Ring()
    two: Ring[Worker] = Ring()
    one.follow(workers(8))
    for count in (3, 1, 8):  # It has seen other times.
        two.follow(workers(8)[-count:])
    found = [(ring.home(each) or Worker("")).url for ring in (one, two) for each in KEYS[:500]]
    assert found[:500] == found[500:]


@given(st.integers(2, 12), st.integers(0, 11))
def test_only_the_share_of_who_goes_moves(count: int, which: int) -> None:
    ring: Ring[Worker] = Ring()
    all_of_them = workers(count)
    ring.follow(all_of_them)
    gone = all_of_them[which % count]
    before = {each: ring.home(each) for each in KEYS[:300]}
    ring.follow([worker for worker in all_of_them if worker is not gone])
    for each, home in before.items():
        assert ring.home(each) is home or home is gone
    ring.follow(all_of_them)
    assert {each: ring.home(each) for each in before} == before


def test_nobody_is_at_home_on_an_empty_ring() -> None:
    ring: Ring[Worker] = Ring()
    assert ring.home(1) is None
    (only,) = workers(1)
    ring.follow([only])
    assert ring.home(2**64 - 1) is only
    ring.follow([])
    assert ring.home(1) is None
