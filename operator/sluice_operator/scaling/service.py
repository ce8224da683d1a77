"""Decisions for all revisions of one service, which live on the same demand.

``fleet`` owns one :class:`ServiceScaler` per service. The stable revision follows demand; one that
is to replace it proves itself first and then follows the stable one's number, so that the switch
costs nobody a request; a canary carries its share and is awake while the stable one is.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from sluice_api import wire
from sluice_operator.scaling.demand import Traffic
from sluice_operator.scaling.lineup import Lineup
from sluice_operator.scaling.recommend import Decision, Recommender, Rule, WorkerCounts, bound
from sluice_operator.scaling.rules import Rules

ORDER_SECONDS = 5.0
"""How long a number that was asked for counts although the Deployment does not show it yet."""


@dataclass(frozen=True, slots=True)
class _Order:
    """A number asked for, and the one that stood there before."""

    desired: int
    before: int
    until: float


class ServiceScaler:
    """The memory behind the decisions for one service.

    Args:
        now: when this memory begins, on the clock of every other call.
    """

    def __init__(self, now: float) -> None:
        self.decisions: dict[str, Decision] = {}
        self._canary = ""
        self._recommenders: dict[str, Recommender] = {}
        self._orders: dict[str, _Order] = {}
        self._began_at = now

    def __repr__(self) -> str:
        return f"<ServiceScaler { ({r: str(d) for r, d in self.decisions.items()}) }>"

    def observe(self, record: wire.Demand, now: float) -> None:
        """Take one record; what the canary gets counts for the canary alone."""
        if record.workers_only:
            return
        if not self._recommenders:
            # Gateways may know a service before its watch event arrives here.
            self._recommenders[record.revision] = Recommender(Rules(), self._began_at)
        if record.revision == self._canary:
            self._recommenders[record.revision].observe(record, now)
            return
        for revision, recommender in self._recommenders.items():
            if revision != self._canary:
                recommender.observe(record, now)

    def forget(self, gateway: str) -> None:
        """A gateway is gone for good."""
        for recommender in self._recommenders.values():
            recommender.forget(gateway)

    def started(self, revision: str, seconds: float) -> None:
        """A replica became ready so long after it was made."""
        if revision in self._recommenders:
            self._recommenders[revision].started(seconds)

    def line_up(self, lineup: Lineup, rules: Rules, proven: Iterable[str], now: float) -> None:
        """Have a memory for each of these revisions and for no other."""
        self._canary = lineup.canary
        proved = set(proven)
        for revision in lineup.revisions():
            if revision not in self._recommenders:
                self._recommenders[revision] = self._memory(revision, lineup, rules, now)
            recommender = self._recommenders[revision]
            recommender.rules = rules
            recommender.proven = recommender.proven or revision in proved
        for memory in (self._recommenders, self._orders, self.decisions):
            for revision in memory.keys() - set(lineup.revisions()):
                del memory[revision]

    def _memory(self, revision: str, lineup: Lineup, rules: Rules, now: float) -> Recommender:
        earlier = self._recommenders.get(lineup.stable) or next(
            iter(self._recommenders.values()), None
        )
        if earlier is None or revision == lineup.canary:
            return Recommender(rules, now)
        return earlier.successor(now)

    def decide(
        self,
        lineup: Lineup,
        counts: Mapping[str, WorkerCounts],
        now: float,
        *,
        unheard: int = 0,
        usual: Callable[[float], float] | None = None,
    ) -> dict[str, Decision]:
        """The number of each revision of the line-up, which :meth:`line_up` was called with.

        ``unheard`` and ``usual`` are :meth:`Recommender.decide`'s; what is usual is the stable
        revision's, which the others follow.
        """
        made: dict[str, Decision] = {}
        for revision in lineup.revisions():
            workers = self._with_order(revision, counts[revision], now)
            known = usual if revision == lineup.stable else None
            recommender = self._recommenders[revision]
            decision = recommender.decide(workers, now, unheard=unheard, usual=known)
            if revision == lineup.next and not workers.ready:
                decision = self._proving(revision, decision)
            if revision != lineup.stable:
                floor = _floor(revision, lineup, made[lineup.stable].desired, workers)
                decision = self._raised(revision, decision, floor)
            made[revision] = decision
            if decision.desired != workers.ordered:
                before = counts[revision].ordered
                self._orders[revision] = _Order(decision.desired, before, now + ORDER_SECONDS)
        self.decisions = made
        return made

    def _with_order(self, revision: str, workers: WorkerCounts, now: float) -> WorkerCounts:
        order = self._orders.get(revision)
        if order is None:
            return workers
        if now > order.until or workers.ordered != order.before:
            del self._orders[revision]
            return workers
        return replace(workers, ordered=order.desired)

    def _raised(self, revision: str, decision: Decision, floor: int) -> Decision:
        if decision.desired >= floor:
            return decision
        reason = f"beside a revision that runs; alone it would be {decision.desired}"
        raised = Decision(floor, Rule.ROLLOUT, reason, decision.inputs)
        return bound(self._recommenders[revision].rules, raised)

    def _proving(self, revision: str, decision: Decision) -> Decision:
        """Lower what demand asks of a revision that may not even start; the stable one carries."""
        rules = self._recommenders[revision].rules
        most = max(rules.initial_replicas, rules.min_replicas, 1)
        if decision.desired <= most:
            return decision
        reason = "the revision proves itself beside the one that runs"
        return Decision(most, Rule.INITIAL, reason, decision.inputs)

    def traffic(self, now: float) -> dict[str, Traffic]:
        """What gateways see, by revision; the next one sees the stable one's."""
        return {name: memory.traffic(now) for name, memory in self._recommenders.items()}


def _floor(revision: str, lineup: Lineup, stable: int, workers: WorkerCounts) -> int:
    """The least number of a revision beside a stable one that is to have ``stable`` replicas."""
    if stable == 0:
        return 0
    if revision == lineup.next:
        # One proves that the revision works; only then is the whole number worth its cost.
        return stable if workers.ready else 1
    if lineup.canary_weight == 0:
        return 0
    share = math.ceil(stable * lineup.canary_weight / 100)
    return share if not workers.ready else 1
