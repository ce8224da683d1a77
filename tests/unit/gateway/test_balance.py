"""Two choices: fair by capacity, never to who is full or excluded, and never blind to room."""

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from sluice_gateway.balance import two_choices


@dataclass(eq=False)
class Worker:
    incarnation: int
    limit: int = 10
    in_flight: int = 0
    blocked: bool = False

    def has_room(self, now: float) -> bool:
        return not self.blocked and self.in_flight < self.limit


WORKERS = st.lists(
    st.builds(
        Worker,
        incarnation=st.integers(0, 1000),
        limit=st.integers(1, 8),
        in_flight=st.integers(0, 8),
        blocked=st.booleans(),
    ),
    max_size=12,
)


@given(workers=WORKERS, excluded=st.frozensets(st.integers(0, 1000)), seed=st.integers())
def test_finds_room_exactly_when_there_is_some(
    workers: list[Worker], excluded: frozenset[int], seed: int
) -> None:
    fitting = [w for w in workers if w.has_room(0) and w.incarnation not in excluded]
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


def test_a_full_one_is_passed_over() -> None:
    draw = random.Random(7).random
    full, free = Worker(1, limit=1, in_flight=1), Worker(2)
    found = Counter(two_choices([full, free], frozenset(), 0.0, draw) is free for _ in range(100))
    assert found == {True: 100}
