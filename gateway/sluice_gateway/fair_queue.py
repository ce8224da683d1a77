"""The order of those who wait: by class, fairly between the tenants of a class, by age within one.

Fair queueing on two levels. Whenever several classes wait, their shares of the work are as
:data:`SHARES`, so a low one is slow and never stands still (self-clocked; Golestani, 1994); inside
a class every tenant gets work by its weight, however many requests it has sent (start-time; Goyal,
Vin and Cheng, 1996). Work is counted in inputs. A request that a worker sent back is first again,
before all classes.

An operation costs O(log tenants); nothing here looks at a clock. ``admission`` owns one queue per
service.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from heapq import heappop, heappush, heapreplace
from typing import Final, Generic, Protocol, TypeVar

from sluice_gateway.priority import Priority

SHARES: Final = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}
"""Of the work that begins while all of them wait, and of the places to wait in."""
_ALL_SHARES: Final = sum(SHARES.values())


class Queued(Protocol):
    """What the queue looks at; hashable by identity.

    Attributes:
        tenant: whose it is, as an opaque key.
        weight: the tenant's share against the others', 1 at least.
        units: inputs in it, 1 at least.
    """

    @property
    def tenant(self) -> bytes: ...
    @property
    def weight(self) -> int: ...
    @property
    def priority(self) -> Priority: ...
    @property
    def units(self) -> int: ...


W = TypeVar("W", bound=Queued)


class FairQueue(Generic[W]):
    """Unbounded by itself: who adds asks :meth:`displaced_by` first where a bound is reached."""

    def __init__(self) -> None:
        self._classes = [_Class[W](SHARES[priority]) for priority in Priority]
        self.all: OrderedDict[W, _Flow[W] | None] = OrderedDict()
        """Who waits, by age, for reading only; None: among the returned."""
        self._returned: OrderedDict[W, None] = OrderedDict()
        self._virtual = 0.0

    def __repr__(self) -> str:
        lengths = "/".join(str(each.length) for each in self._classes)
        return f"<FairQueue {len(self.all)} waiting, by class {lengths}>"

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[W]:
        """By age: those who were sent back, then in the order they came."""
        return iter(self.all)

    def lengths(self) -> dict[Priority, int]:
        """How many wait in each class, those who were sent back not counted."""
        return {priority: self._classes[priority].length for priority in Priority}

    def tenants(self) -> int:
        """How many tenants wait, counted once per class."""
        return sum(each.active for each in self._classes)

    def add(self, waiter: W) -> None:
        """The last of its tenant."""
        self.all[waiter] = self._join(waiter)

    def change(self, waiter: W, change: Callable[[], None]) -> None:
        """Call ``change``, after which ``waiter`` has another priority or weight.

        It is then the last of its tenant there, as if it had just come; its age stays, and so does
        the place of one that was sent back.
        """
        flow = self.all.get(waiter)
        if flow is None:
            change()
            return
        self._classes[waiter.priority].remove(flow, waiter)
        change()
        self.all[waiter] = self._join(waiter)

    def _join(self, waiter: W) -> "_Flow[W]":
        mine = self._classes[waiter.priority]
        if not mine.length:
            # Nobody saves up for later by not coming. Going by where a turn would end, not where it
            # begins, lets what is urgent go first also at the beginning of a rush.
            mine.tag = max(mine.tag, self._virtual + 1 / mine.share)
        return mine.add(waiter)

    def put_back(self, waiter: W) -> None:
        """The first of all."""
        self.all[waiter] = None
        self.all.move_to_end(waiter, last=False)
        self._returned[waiter] = None
        self._returned.move_to_end(waiter, last=False)

    def pop(self) -> W:
        """Take out whose turn it is. Raises IndexError when nobody waits."""
        if self._returned:
            waiter, _ = self._returned.popitem(last=False)
        else:
            waiting = [each for each in self._classes if each.length]
            if not waiting:
                raise IndexError("nobody waits")
            mine = min(waiting, key=_tag)
            self._virtual = mine.tag
            waiter = mine.pop()
            mine.tag += waiter.units / mine.share
        del self.all[waiter]
        self._rest()
        return waiter

    def remove(self, waiter: W) -> bool:
        """Take ``waiter`` out of turn; False when it does not wait."""
        if waiter not in self.all:
            return False
        flow = self.all.pop(waiter)
        if flow is None:
            del self._returned[waiter]
        else:
            self._classes[waiter.priority].remove(flow, waiter)
        self._rest()
        return True

    def clear(self) -> list[W]:
        """Empty it. Returns who waited, by age."""
        waiting = list(self.all)
        self.all.clear()
        self._returned.clear()
        for each in self._classes:
            each.clear()
        self._rest()
        return waiting

    def ahead_of(self, waiter: W) -> int:
        """About how many are served before ``waiter``, which does not wait yet, once it does."""
        mine = self._classes[waiter.priority]
        above = sum(self._classes[higher].length for higher in range(waiter.priority))
        return len(self._returned) + above + mine.ahead_of(waiter)

    def displaced_by(self, waiter: W, limit: int) -> W | None:
        """Who must go, if anybody, that ``waiter`` may come where ``limit`` wait already.

        Of the classes that fill more than their share of the places the lowest gives one, at
        ``waiter``'s own at the highest unless that has less than its share; in it the tenant with
        most requests for its weight, and of these the newest. None: ``waiter`` itself is that one.
        """
        own = self._classes[waiter.priority]
        below_share = own.length < _places(own, limit)
        for priority in reversed(Priority):
            each = self._classes[priority]
            if each is own:
                if not below_share:
                    return own.newest_of_longest(waiter)
            elif each.length > _places(each, limit) and (below_share or priority > waiter.priority):
                return each.newest_of_longest()
        return None

    def _rest(self) -> None:
        if not self.all:
            # What was given to whom counts while somebody waits for it, and no longer.
            self._virtual = 0.0
            for each in self._classes:
                each.tag = 0.0


def _places(each: "_Class[W]", limit: int) -> int:
    """The places that no other class may take."""
    return limit * each.share // _ALL_SHARES


def _tag(each: "_Class[W]") -> float:
    return each.tag


class _Flow(Generic[W]):
    """One tenant in one class."""

    __slots__ = ("level", "tag", "tenant", "waiting", "weight")

    def __init__(self, tenant: bytes, tag: float) -> None:
        self.tenant = tenant
        self.tag = tag
        """Start tag of its next request: the work begun for it, in units of its weight."""
        self.weight = 1
        self.level = 0
        """Its requests for its weight; how :class:`_Class` finds the longest."""
        self.waiting: OrderedDict[W, None] = OrderedDict()


class _Class(Generic[W]):
    """The requests of one priority."""

    def __init__(self, share: int) -> None:
        self.share = share
        self.tag = 0.0
        self.length = 0
        self.active = 0
        """Tenants that have somebody here."""
        self._virtual = 0.0
        self._flows: dict[bytes, _Flow[W]] = {}
        self._order: list[tuple[float, int, _Flow[W]]] = []
        self._turn = 0
        self._levels: dict[int, OrderedDict[_Flow[W], None]] = {}
        self._top = 0

    def add(self, waiter: W) -> _Flow[W]:
        flow = self._flows.get(waiter.tenant)
        if flow is None:
            flow = self._flows[waiter.tenant] = _Flow(waiter.tenant, self._virtual)
            self._turn += 1
            heappush(self._order, (flow.tag, self._turn, flow))
        if not flow.waiting:
            self.active += 1
        flow.weight = max(1, waiter.weight)
        flow.waiting[waiter] = None
        self.length += 1
        self._lengthened(flow)
        return flow

    def pop(self) -> W:
        while True:
            tag, _, flow = self._order[0]
            if flow.waiting:
                break
            # It has had no more than its share of what has begun: nothing to remember of it.
            heappop(self._order)
            del self._flows[flow.tenant]
        waiter, _ = flow.waiting.popitem(last=False)
        self._virtual = tag
        flow.tag = tag + waiter.units / flow.weight
        self._turn += 1
        heapreplace(self._order, (flow.tag, self._turn, flow))
        self._shortened(flow)
        return waiter

    def remove(self, flow: _Flow[W], waiter: W) -> None:
        del flow.waiting[waiter]
        self._shortened(flow)

    def clear(self) -> None:
        self.length = self.active = self._top = 0
        self._virtual = 0.0
        self._flows.clear()
        self._order.clear()
        self._levels.clear()

    def ahead_of(self, waiter: W) -> int:
        flow = self._flows.get(waiter.tenant)
        depth = len(flow.waiting) if flow is not None else 0
        others = self.active - (depth > 0)
        # Each other tenant has one turn for each of its own; nobody stands before it twice.
        return min(self.length, depth + (depth + 1) * others)

    def newest_of_longest(self, but: W | None = None) -> W | None:
        """The newest of the tenant with most; None when ``but``'s tenant would have as many."""
        if not self.length:
            return None
        longest = next(reversed(self._levels[self._top]))
        if but is not None:
            mine = self._flows.get(but.tenant)
            length = len(mine.waiting) if mine is not None else 0
            if longest is mine or longest.level <= (length + 1) / max(1, but.weight):
                return None
        return next(reversed(longest.waiting))

    def _lengthened(self, flow: _Flow[W]) -> None:
        self._level(flow)
        self._top = max(self._top, flow.level)

    def _shortened(self, flow: _Flow[W]) -> None:
        self.length -= 1
        self._level(flow)
        if not flow.waiting:
            self.active -= 1
        if not self.length:
            self.clear()
        while self._top and not self._levels.get(self._top):
            self._top -= 1

    def _level(self, flow: _Flow[W]) -> None:
        """Keep ``flow`` among those of its length; a weight is whole, so that moves it by one."""
        level = -(-len(flow.waiting) // flow.weight)
        if flow.level == level:
            return
        before = self._levels.get(flow.level)
        if before is not None:
            before.pop(flow, None)
            if not before:
                del self._levels[flow.level]
        flow.level = level
        if level:
            self._levels.setdefault(level, OrderedDict())[flow] = None
