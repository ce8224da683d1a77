"""The queue against a plain model: nobody is lost, order within a tenant, fairness with a bound."""

from collections import defaultdict
from functools import partial
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sluice_gateway.fair_queue import SHARES, FairQueue
from sluice_gateway.priority import Priority


class Waiting:
    def __init__(
        self,
        tenant: bytes = b"a",
        weight: int = 1,
        units: int = 1,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        self.tenant = tenant
        self.weight = weight
        self.units = units
        self.priority = priority


Flow = tuple[bytes, Priority]
TENANTS = st.sampled_from([b"a", b"b", b"c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), TENANTS, st.sampled_from(Priority), st.integers(1, 5)),
        st.tuples(st.sampled_from(["pop", "back", "remove", "raise"]), st.integers(0, 100)),
    ),
    max_size=80,
)


@given(STEPS)
def test_everybody_gets_a_turn_once_and_in_order(steps: list[tuple[object, ...]]) -> None:
    queue: FairQueue[Waiting] = FairQueue()
    inside: list[Waiting] = []
    flows: defaultdict[Flow, list[Waiting]] = defaultdict(list)
    returned: list[Waiting] = []
    popped: list[Waiting] = []

    def take() -> None:
        waiter = queue.pop()
        inside.remove(waiter)
        if returned:
            assert waiter is returned.pop(0), "who was sent back is first"
        else:
            assert waiter is flows[waiter.tenant, waiter.priority].pop(0), "in order"
        popped.append(waiter)

    for kind, *rest in steps:
        if kind == "add":
            tenant, priority, units = rest
            waiter = Waiting(tenant, units=units, priority=priority)  # type: ignore[arg-type]
            queue.add(waiter)
            inside.append(waiter)
            flows[waiter.tenant, waiter.priority].append(waiter)
        elif kind == "pop" and inside:
            take()
        elif kind == "back" and popped:
            waiter = popped.pop()
            queue.put_back(waiter)
            inside.insert(0, waiter)
            returned.insert(0, waiter)
        elif kind == "remove" and inside:
            waiter = inside.pop(rest[0] % len(inside))  # type: ignore[operator]
            assert queue.remove(waiter) and not queue.remove(waiter)
            own = flows[waiter.tenant, waiter.priority]
            (returned if waiter in returned else own).remove(waiter)
        elif kind == "raise" and inside:
            waiter = inside[rest[0] % len(inside)]  # type: ignore[operator]
            if waiter not in returned:
                flows[waiter.tenant, waiter.priority].remove(waiter)
                flows[waiter.tenant, Priority.HIGH].append(waiter)
            queue.change(waiter, partial(setattr, waiter, "priority", Priority.HIGH))
        assert list(queue) == inside
        assert queue.tenants() == sum(1 for flow in flows.values() if flow)
        assert len(queue) == sum(queue.lengths().values()) + len(returned)
    while inside:
        take()
    assert len(queue) == 0 and repr(queue) == "<FairQueue 0 waiting, by class 0/0/0>"


@given(
    weights=st.lists(st.integers(1, 8), min_size=2, max_size=6),
    units=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    flood=st.integers(1, 300),
)
def test_no_tenant_gets_much_more_than_its_weight(
    weights: list[int], units: list[int], flood: int
) -> None:
    """The bound of start-time fair queueing: one request of each, by weight."""
    queue: FairQueue[Waiting] = FairQueue()
    for number, weight in enumerate(weights):
        # The first one floods; each of the others has enough to be waiting all the time.
        for place in range(60 + flood * (number == 0)):
            cost = units[(number + place) % len(units)]
            queue.add(Waiting(b"%d" % number, weight, cost))
    served = [0.0] * len(weights)
    longest = max(units)
    for _ in range(60):
        waiter = queue.pop()
        number = int(waiter.tenant)
        served[number] += waiter.units / waiter.weight
        for other, work in enumerate(served):
            bound = longest / weights[number] + longest / weights[other]
            assert served[number] - work <= bound


@given(before=st.integers(0, 200), priority=st.sampled_from(Priority))
def test_who_comes_late_does_not_wait_for_the_flood(before: int, priority: Priority) -> None:
    queue: FairQueue[Waiting] = FairQueue()
    for _ in range(300):
        queue.add(Waiting(b"flood", priority=priority))
    for _ in range(before):
        queue.pop()
    late = Waiting(b"late", priority=priority)
    assert queue.ahead_of(late) <= 1
    queue.add(late)
    assert late in (queue.pop(), queue.pop())


def test_classes_share_the_work_and_the_lowest_stands_never_still() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    for priority in Priority:
        for _ in range(2000):
            queue.add(Waiting(priority=priority))
    rounds = 10
    taken = [queue.pop().priority for _ in range(rounds * sum(SHARES.values()))]
    for priority, share in SHARES.items():
        assert abs(taken.count(priority) - rounds * share) <= 1
    gaps = [place for place, priority in enumerate(taken) if priority is Priority.LOW]
    assert all(b - a <= 22 for a, b in pairwise(gaps))


def test_an_urgent_one_passes_a_flood_of_others() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    for _ in range(500):
        queue.add(Waiting(b"flood"))
    for _ in range(100):
        queue.pop()
    urgent = Waiting(b"urgent", priority=Priority.HIGH)
    queue.add(urgent)
    assert urgent in (queue.pop(), queue.pop())


@given(
    lengths=st.lists(st.tuples(TENANTS, st.sampled_from(Priority), st.integers(0, 40)), max_size=9),
    tenant=TENANTS,
    priority=st.sampled_from(Priority),
)
def test_a_full_queue_lets_in_who_has_less_than_its_share_and_nobody_else(
    lengths: list[tuple[bytes, Priority, int]], tenant: bytes, priority: Priority
) -> None:
    queue: FairQueue[Waiting] = FairQueue()
    count: defaultdict[Flow, int] = defaultdict(int)
    for name, place, length in lengths:
        for _ in range(length):
            queue.add(Waiting(name, priority=place))
            count[name, place] += 1
    limit = len(queue)
    waiter = Waiting(tenant, priority=priority)
    displaced = queue.displaced_by(waiter, limit)
    of_class = queue.lengths()
    places = {each: limit * SHARES[each] // sum(SHARES.values()) for each in Priority}
    if displaced is None:
        # Every class below is within its share, and no tenant of the own one has more.
        assert all(of_class[each] <= places[each] for each in Priority if each > priority), (
            "a lower class that has too much must give"
        )
        most = max((n for (_, each), n in count.items() if each == priority), default=0)
        assert most <= count[tenant, priority] + 1
    elif displaced.priority != priority:
        assert of_class[displaced.priority] > places[displaced.priority]
        assert displaced.priority > priority or of_class[priority] < places[priority]
    else:
        assert count[displaced.tenant, priority] > count[tenant, priority] + 1
    if displaced is not None:
        of_tenant = [
            each
            for each in queue
            if (each.tenant, each.priority) == (displaced.tenant, displaced.priority)
        ]
        assert displaced is of_tenant[-1], "the newest goes"
        same_class = [n for (_, each), n in count.items() if each == displaced.priority]
        assert len(of_tenant) == max(same_class)


def test_a_tenant_that_stays_away_saves_nothing_up() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    queue.add(Waiting(b"a"))
    for _ in range(100):
        queue.add(Waiting(b"a"))
        queue.pop()
    for _ in range(10):
        queue.add(Waiting(b"b"))
        queue.add(Waiting(b"a"))
    first = [queue.pop().tenant for _ in range(10)]
    assert 4 <= first.count(b"b") <= 6


def test_emptied_at_once() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    waiting = [Waiting(), Waiting(priority=Priority.LOW), Waiting(b"b")]
    for waiter in waiting:
        queue.add(waiter)
    queue.put_back(first := Waiting())
    assert queue.clear() == [first, *waiting]
    assert len(queue) == 0 and queue.tenants() == 0
    queue.add(waiting[0])
    assert queue.pop() is waiting[0]
