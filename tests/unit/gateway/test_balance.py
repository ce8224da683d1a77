"""Two choices: fair by capacity, never to who is full or excluded, and never blind to room."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_gateway.balance import near_first, slow_start, two_choices, within_bound


@dataclass(eq=False)
class Worker:
    incarnation: int
    limit: int = 10
    in_flight: int = 0

    warm: float = 1.0

    def warmth(self, now: float) -> float:
        return self.warm


WORKERS = st.lists(
    st.builds(
        Worker,
        incarnation=st.integers(0, 1000),
        limit=st.integers(1, 8),
        in_flight=st.integers(0, 8),
    ),
    max_size=12,
)


@given(workers=WORKERS, excluded=st.frozensets(st.integers(0, 1000)), seed=st.integers())
def test_finds_room_exactly_when_there_is_some(
    workers: list[Worker], excluded: frozenset[int], seed: int
) -> None:
    fitting = [w for w in workers if w.incarnation not in excluded]
    chosen = two_choices(workers, excluded, 0.0, random.Random(seed).random)
    assert (chosen is None) == (not fitting)
    assert chosen is None or chosen in fitting


def test_load_follows_capacity() -> None:
    draw = random.Random(7).random
    workers = [Worker(1, limit=100), Worker(2, limit=300)]
    for _ in range(200):
        chosen = two_choices(workers, frozenset(), 0.0, draw)
        assert chosen is not None
        chosen.in_flight += 1
    shares = [worker.in_flight / worker.limit for worker in workers]
    assert abs(shares[0] - shares[1]) < 0.1


def test_thousand_workers_share_evenly() -> None:
    draw = random.Random(7).random
    workers = [Worker(number, limit=1000) for number in range(1000)]
    for _ in range(20_000):
        chosen = two_choices(workers, frozenset(), 0.0, draw)
        assert chosen is not None
        chosen.in_flight += 1
    # One choice would leave the fullest with about 36; two leave it a few above the mean of 20.
    assert max(worker.in_flight for worker in workers) <= 25


def test_an_excluded_one_is_passed_over() -> None:
    draw = random.Random(7).random
    failed, free = Worker(1), Worker(2)
    found = Counter(two_choices([failed, free], {1}, 0.0, draw) is free for _ in range(100))
    assert found == {True: 100}


@pytest.mark.parametrize("warmth", [0.1, 0.5, 0.9])
def test_a_fresh_one_gets_its_share_of_what_it_would_get(warmth: float) -> None:
    draw = random.Random(7).random
    fresh, warm = Worker(1, limit=10, warm=warmth), Worker(2, limit=10)
    count = Counter(slow_start([fresh, warm], frozenset(), 0.0, draw) is fresh for _ in range(4000))
    assert count[True] / 4000 == pytest.approx(warmth / 2, abs=0.03)


def test_a_fresh_one_gets_all_where_the_warm_ones_would_make_requests_wait() -> None:
    draw = random.Random(7).random
    fresh, busy = Worker(1, limit=10, warm=0.1), Worker(2, limit=10, in_flight=5)
    chosen = {slow_start([fresh, busy], frozenset(), 0.0, draw) is fresh for _ in range(100)}
    assert chosen == {True}
    assert slow_start([fresh], frozenset(), 0.0, draw) is fresh


def test_equally_fresh_ones_share_evenly() -> None:
    draw = random.Random(7).random
    workers = [Worker(number, warm=0.1) for number in range(4)]
    count = Counter(slow_start(workers, frozenset(), 0.0, draw) for _ in range(4000))
    assert all(800 < share < 1200 for share in count.values())


def test_the_own_zone_first_until_it_is_half_full_and_another_is_not() -> None:
    draw = random.Random(7).random
    near, far = Worker(1, limit=10), Worker(2, limit=10)
    for in_flight in range(5):
        near.in_flight = in_flight
        assert near_first([near], [near, far], frozenset(), 0.0, draw) is near
    near.in_flight = 5
    assert near_first([near], [near, far], frozenset(), 0.0, draw) is far
    far.in_flight = 6
    assert near_first([near], [near, far], frozenset(), 0.0, draw) is near
    assert near_first([near], [near, far], {1}, 0.0, draw) is far
    assert near_first([], [far], frozenset(), 0.0, draw) is far
    assert near_first([near], [near], {1}, 0.0, draw) is None


def test_the_bound_is_a_quarter_above_the_mean_by_capacity() -> None:
    assert within_bound(Worker(1, limit=10, in_flight=0), 0, 40, 0.0)
    # 40 requests at four equal workers: 10 each, and never more than 13 for the sake of memory.
    assert within_bound(Worker(1, limit=20, in_flight=12), 40, 80, 0.0)
    assert not within_bound(Worker(1, limit=20, in_flight=13), 40, 80, 0.0)
    # One that holds half of all may have half of the load.
    assert within_bound(Worker(1, limit=40, in_flight=24), 40, 80, 0.0)
    assert not within_bound(Worker(1, limit=20, in_flight=3, warm=0.1), 40, 80, 0.0)
