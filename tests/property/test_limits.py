"""Limits that gateways share are kept, whatever is asked for where, and whenever they settle.

Gateways and Redis in virtual time. What was admitted must have come out of one strict bucket whose
burst is larger by what is promised: the parts of the other gateways, once, and what they have taken
of their parts of the rate since they were told last.
"""

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sluice_api.rates import SHORTEST_BURST_SECONDS, Rate
from sluice_gateway.limits import SETTLE_LAG_SECONDS, Bucket, Sharing


class Common:
    """The bucket in Redis, as the script of ``shared_limits`` has it; tests/faults compares."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.level = float(rate.burst)
        self.at = 0.0

    def settle(self, taken: float, now: float) -> float:
        if now > self.at:
            self.level = min(self.rate.burst, self.level + (now - self.at) * self.rate.per_second)
            self.at = now
        self.level -= taken
        return self.level


@dataclass
class Fleet:
    """Some gateways, each with its bucket; replies of Redis come when the test says so."""

    rate: Rate
    count: int
    now: float = 0.0
    admitted: list[tuple[float, int]] = field(default_factory=list)
    replies: dict[int, float | None] = field(default_factory=dict)
    is_up: bool = True
    late: float = 0.0
    """The most that gateways had taken of the rate, without Redis knowing it."""

    def __post_init__(self) -> None:
        self.common = Common(self.rate)
        self.sharings = [Sharing(self.count) for _ in range(self.count)]
        self.buckets = [Bucket(self.rate, sharing, 0.0) for sharing in self.sharings]
        self.heard = [0.0] * self.count
        self.untold = [0] * self.count

    def take(self, gateway: int, count: int) -> float:
        wait = self.buckets[gateway].take(count, self.now)
        if not wait:
            self.admitted.append((self.now, count))
            self.untold[gateway] += count
        return wait

    def ask(self, gateway: int) -> None:
        """Begin to settle, unless that is under way."""
        if gateway not in self.replies:
            self.late = max(self.late, self.taken_of_the_rate())
            taken = self.buckets[gateway].settle(self.now)
            self.replies[gateway] = self.common.settle(taken, self.now) if self.is_up else None
            self.untold[gateway] *= not self.is_up

    def reply(self, gateway: int) -> None:
        if gateway in self.replies:
            told = self.replies.pop(gateway)
            self.sharings[gateway].is_up = told is not None
            if told is None:
                self.buckets[gateway].not_told()
            else:
                self.buckets[gateway].told(told, self.now)
                self.heard[gateway] = self.now

    def taken_of_the_rate(self) -> float:
        pace = self.rate.per_second / self.count
        pairs = zip(self.heard, self.untold, strict=True)
        return sum(min(pace * (self.now - heard), untold) for heard, untold in pairs)

    def settle(self) -> None:
        for gateway in range(self.count):
            self.ask(gateway)
            self.reply(gateway)

    def overshoot(self) -> float:
        return overshoot(self.rate, self.admitted)


def overshoot(rate: Rate, admitted: list[tuple[float, int]]) -> float:
    """By how much a bucket with the limit's burst would have been overdrawn at worst."""
    level, at, worst = float(rate.burst), 0.0, 0.0
    for when, count in admitted:
        level = min(rate.burst, level + (when - at) * rate.per_second) - count
        at = when
        worst = max(worst, -level)
    return worst


def flood(fleet: Fleet, seconds: float, among: int) -> None:
    """Ask every millisecond, one after another of so many gateways, and settle every 20."""
    for step in range(round(seconds * 1000)):
        fleet.take(step % among, 1)
        fleet.now += 0.001
        if step % 20 == 0:
            fleet.settle()


def rush(fleet: Fleet) -> None:
    """All are told the same at one instant, and then asked for the whole burst, each of them."""
    for gateway in range(fleet.count):
        fleet.ask(gateway)
    for gateway in range(fleet.count):
        fleet.reply(gateway)
    for gateway in range(fleet.count):
        for _ in range(fleet.rate.burst):
            fleet.take(gateway, 1)


def parts_of_others(fleet: Fleet) -> float:
    return (fleet.count - 1) * max(1.0, fleet.rate.burst / fleet.count) + fleet.late


rates = st.builds(
    lambda per_second, burst: Rate("", per_second, burst),
    st.floats(0.01, 1000),
    st.integers(1, 500),
)
gateways = st.integers(0, 5)
takes = st.tuples(st.just("take"), gateways, st.integers(1, 40))
settles = st.tuples(st.sampled_from(["ask", "reply"]), gateways, st.just(0))
pauses = st.tuples(st.just("pass"), st.floats(0.0001, 5), st.just(0))
floods = st.tuples(st.just("flood"), gateways, st.integers(1, 30))
rushes = st.tuples(st.just("rush"), gateways, st.just(0))
outages = st.tuples(st.sampled_from(["down", "up"]), st.just(0), st.just(0))
Step = tuple[str, float, int]


def run(fleet: Fleet, steps: list[Step], *, size: int = 1) -> None:
    """Take the steps; a ``take`` asks that many times for ``size``."""
    for what, value, count in steps:
        gateway = int(value) % fleet.count
        match what:
            case "take":
                for _ in range(count):
                    fleet.take(gateway, size)
            case "ask":
                fleet.ask(gateway)
            case "reply":
                fleet.reply(gateway)
            case "pass":
                fleet.now += value
            case "rush":
                rush(fleet)
            case "flood":
                flood(fleet, count * 0.02, gateway + 1)
            case _:
                fleet.is_up = what == "up"


@given(
    rates,
    st.integers(1, 6),
    st.lists(st.one_of(takes, settles, pauses, floods, rushes), max_size=40),
)
@example(  # What the second takes of the rate is not known yet when the first is told.
    Rate("", 1.0, 5),
    2,
    [("take", 0, 2), ("rush", 0, 0), ("pass", 1.0, 0), ("take", 1, 1), ("rush", 0, 0)],
)
@example(  # What is taken while Redis is asked.
    Rate("", 1.0, 5), 1, [("ask", 0, 0), ("take", 0, 5), ("reply", 0, 0), ("take", 0, 1)]
)
@settings(max_examples=150, deadline=None)
def test_no_window_admits_more_than_burst_and_rate_and_the_parts_of_others(
    rate: Rate, count: int, steps: list[Step]
) -> None:
    fleet = Fleet(rate, count)
    run(fleet, steps)
    assert fleet.overshoot() <= parts_of_others(fleet) + 1e-6


@given(
    rates,
    st.integers(1, 6),
    st.lists(st.one_of(takes, settles, pauses), max_size=60),
    st.integers(2, 30),
)
@settings(max_examples=100, deadline=None)
def test_large_requests_overdraw_by_one_of_them_at_each_gateway(
    rate: Rate, count: int, steps: list[Step], size: int
) -> None:
    fleet = Fleet(rate, count)
    run(fleet, steps, size=size)
    assert fleet.overshoot() <= parts_of_others(fleet) + fleet.count * size + 1e-6


@given(rates, st.integers(1, 6), st.lists(st.one_of(takes, settles, pauses, outages), max_size=120))
@settings(max_examples=100, deadline=None)
def test_each_outage_of_redis_adds_a_burst_at_most(
    rate: Rate, count: int, steps: list[Step]
) -> None:
    fleet = Fleet(rate, count)
    run(fleet, steps)
    times = sum(what == "down" for what, _, _ in steps)
    allowed = parts_of_others(fleet) + times * max(rate.burst, count)
    assert fleet.overshoot() <= allowed + 1e-6


@given(rates, st.integers(1, 6), st.lists(st.one_of(takes, pauses), max_size=120))
@settings(max_examples=100, deadline=None)
def test_without_redis_the_parts_are_no_more_than_the_whole(
    rate: Rate, count: int, steps: list[Step]
) -> None:
    fleet = Fleet(rate, count)
    run(fleet, steps)
    # A part holds one at least, so more gateways than burst hold more than it.
    assert fleet.overshoot() <= max(0, count - rate.burst) + 1e-6


@given(st.integers(1, 5), st.sampled_from([5.0, 50.0, 200.0]), st.integers(1, 100), st.booleans())
@settings(max_examples=30, deadline=None)
def test_what_is_allowed_is_given_wherever_it_is_asked_for(
    count: int, per_second: float, burst: int, at_one: bool
) -> None:
    burst = max(burst, int(per_second * SHORTEST_BURST_SECONDS))
    fleet = Fleet(Rate("", per_second, burst), count)
    flood(fleet, 4.0, 1 if at_one else count)
    admitted = len(fleet.admitted)
    wanted = burst + per_second * 4
    # A gateway that has nothing may have to wait for the next settling, every 20 ms here.
    assert 0.8 * wanted - count - 1 <= admitted <= wanted + parts_of_others(fleet) + 1


@given(rates, st.lists(st.one_of(takes, settles, pauses), max_size=60))
@example(Rate("", 1.0, 1), [("take", 0, 1), ("take", 1, 1)])
@settings(max_examples=100, deadline=None)
def test_who_waits_as_long_as_told_is_let_in(rate: Rate, steps: list[Step]) -> None:
    """Where nobody else takes it first, and Redis is asked in time."""
    fleet = Fleet(rate, 3)
    run(fleet, steps)
    for gateway in range(3):
        fleet.reply(gateway)
    fleet.settle()
    fleet.settle()  # The first learns now what the last had taken when it was told.
    if wait := fleet.take(0, 1):
        fleet.now += wait - SETTLE_LAG_SECONDS / 2
        fleet.settle()
        fleet.now += SETTLE_LAG_SECONDS / 2
        assert fleet.take(0, 1) == 0


@dataclass
class Member:
    """A gateway that may be cut off from Redis, by itself.

    Attributes:
        heard: when it asked what Redis told it last.
        cut: something it told since then did not arrive, or the reply did not.
        part: the most it has held as its part.
        pace: the most it was filled with a second since it heard.
        untold: what it has taken since it told Redis.
    """

    bucket: Bucket
    sharing: Sharing
    heard: float
    cut: bool = False
    part: float = 0.0
    pace: float = 0.0
    untold: int = 0
    reply: tuple[float, float | None] | None = None

    def __post_init__(self) -> None:
        self.note()

    def note(self) -> None:
        self.part = max(self.part, self.bucket._part)
        self.pace = max(self.pace, self.bucket._pace)


class Changing:
    """Gateways that come and go, each of which Redis may fail on its own.

    Others come and go that nobody asks for this limit; they count, for the parts.
    """

    def __init__(self, rate: Rate, count: int) -> None:
        self.rate = rate
        self.now = 0.0
        self.common = Common(rate)
        self.admitted: list[tuple[float, int]] = []
        self.others = 0
        self.parts: list[float] = []
        """Of those that have gone."""
        self.uncounted = 0.0
        """What may have been taken by the rate, by whom Redis has not heard."""
        self.late = 0.0
        """The most that had been taken by the rate, by whom Redis just has not heard yet."""
        self.members: list[Member] = []
        for _ in range(count):
            self.join()

    @property
    def count(self) -> int:
        return len(self.members) + self.others

    def join(self) -> None:
        sharing = Sharing(max(1, self.count))
        self.members.append(Member(Bucket(self.rate, sharing, self.now), sharing, self.now))

    def leave(self, member: Member) -> None:
        """It is killed: what it has not told is never told."""
        self.members.remove(member)
        self.parts.append(member.part)
        self.uncounted += member.pace * (self.now - member.heard)

    def take(self, member: Member, count: int) -> None:
        for _ in range(count):
            if not member.bucket.take(1, self.now):
                self.admitted.append((self.now, 1))
                member.untold += 1

    def resize(self, member: Member) -> None:
        """It has settled another limit, and learnt how many gateways there are."""
        member.sharing.gateways = self.count
        member.bucket.resize()
        member.note()

    def ask(self, member: Member, outcome: str) -> None:
        if member.reply is None:
            waiting = [m for m in self.members if not m.cut]
            late = sum(min(m.pace * (self.now - m.heard), m.untold) for m in waiting)
            self.late = max(self.late, late)
            taken = member.bucket.settle(self.now)
            told = None if outcome == "refused" else self.common.settle(taken, self.now)
            member.reply = (self.now, told if outcome == "told" else None)
            member.untold *= outcome != "told"

    def hear(self, member: Member) -> None:
        if member.reply is None:
            return
        (asked, told), member.reply = member.reply, None
        if told is None:
            member.cut = True
            member.bucket.not_told()
            return
        self.resize(member)
        if member.cut:
            self.uncounted += member.pace * (asked - member.heard)
        member.cut, member.heard = False, asked
        member.bucket.told(told, self.now)
        member.pace = member.bucket._pace

    def allowed(self) -> float:
        """What may have come beyond the limit."""
        parts = self.parts + [member.part for member in self.members]
        since = sum(m.pace * (self.now - m.heard) for m in self.members if m.cut)
        return sum(parts) - min(parts) + self.uncounted + since + self.late


outcomes = st.tuples(st.sampled_from(["told", "told", "refused", "lost"]), gateways, st.just(0))
answers = st.tuples(st.sampled_from(["hear", "resize"]), gateways, st.just(0))
several = st.tuples(st.just("take"), gateways, st.integers(1, 600))
changes = st.tuples(st.sampled_from(["join", "leave"]), gateways, st.just(0))
neighbours = st.tuples(st.just("others"), st.integers(0, 30), st.just(0))


@given(
    rates,
    st.integers(1, 4),
    st.lists(
        st.one_of(several, outcomes, answers, answers, pauses, changes, neighbours), max_size=80
    ),
)
@example(  # Its part shrinks while what it took has not been told yet.
    Rate("", 0.01, 100),
    1,
    [
        *([("take", 0, 100), ("refused", 0, 0), ("hear", 0, 0)]),
        *([("others", 9, 0), ("resize", 0, 0), ("told", 0, 0), ("hear", 0, 0)]),
        *([("others", 0, 0), ("told", 0, 0), ("hear", 0, 0), ("take", 0, 100)]),
    ],
)
@settings(max_examples=300, deadline=None)
def test_who_is_cut_off_adds_its_part_of_the_rate_however_many_come_and_go(
    rate: Rate, count: int, steps: list[Step]
) -> None:
    """A call may fail before it has run or after, and the number of gateways change meanwhile."""
    fleet = Changing(rate, count)
    for what, value, times in steps:
        member = fleet.members[int(value) % len(fleet.members)]
        match what:
            case "take":
                fleet.take(member, times)
            case "told" | "refused" | "lost":
                fleet.ask(member, what)
            case "hear":
                fleet.hear(member)
            case "resize":
                fleet.resize(member)
            case "pass":
                fleet.now += value
            case "join":
                fleet.join()
            case "others":
                fleet.others = int(value)
            case "leave" if len(fleet.members) > 1:
                fleet.leave(member)
    assert overshoot(rate, fleet.admitted) <= fleet.allowed() + 1e-6
