"""How many replicas a service should have, and why: demand, not queue.

Called each second for each service, and at once when a sleeping one is asked for, by whoever runs
workers (``sluice up``, the operator). Principles: backlog is not demand; what is starting counts;
missing data may raise but never lower; every decision says which rule made it. Peers that divide
the queue by a target order a fleet for a backlog that one replica would have cleared.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from enum import StrEnum

from sluice_api import wire
from sluice_operator.scaling.demand import SHORT, DemandWindow, Traffic
from sluice_operator.scaling.history import ColdStarts, PeakWindow, ReplicaCapacity, Returns
from sluice_operator.scaling.needs import (
    DOWN_UTILISATION,
    HOLD_DOWN_SECONDS,
    UTILISATION,
    down_window,
    keep_alive,
    planned_capacity,
    replicas_for,
    replicas_foreseen,
    worth_waiting,
)
from sluice_operator.scaling.rules import Rules
from sluice_operator.scaling.trend import Trend

DRAIN_SECONDS = 2.0
"""A backlog should be gone within this, or within one cold start if that is longer."""
GIVE_BACK_SECONDS = 10.0
"""Demand must have been lower for so long, or for a start, before replicas that do not answer yet
are given back."""
DISTURBED_SECONDS = 60.0
"""While replicas start, they slow down those that answer: for so long nobody concludes from it that
a replica does less, orders even more of them, and slows all of them down further."""
SETTLE_SECONDS = 3.0
"""Throughput is measured only while the same replicas have been ready for so long."""


class Rule(StrEnum):
    """Which rule made a decision. A closed list; shown in status and in the live table."""

    INITIAL = "initial"
    """The revision has not proved itself yet."""
    WAKE = "wake"
    """A sleeping service was asked for."""
    ARRIVALS = "arrivals"
    """More requests arrive than the replicas should carry."""
    BACKLOG = "backlog"
    """Waiting requests would not be answered in time."""
    TREND = "trend"
    """Demand climbs, to more than the replicas should carry when another has started."""
    SEASON = "season"
    """So much came at this time on the days before."""
    STEADY = "steady"
    """The number fits the demand."""
    WINDOW = "window"
    """Fewer would do, but not for long enough yet."""
    DOWN = "down"
    """Fewer have been enough for long enough."""
    IDLE = "idle"
    """Nobody has asked for long enough."""
    HOLD = "hold"
    """Data are missing, so the number is not lowered."""
    BLOCKED = "blocked"
    """Replicas ordered before find no room, or all of them fail, so no more are ordered."""
    ROLLOUT = "rollout"
    """A revision beside the one that runs has to be able to take over its share."""
    FLOOR = "floor"
    """Raised to minReplicas."""
    CEILING = "ceiling"
    """Lowered to maxReplicas."""


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """Replicas of one service's revision.

    Attributes:
        ordered: how many were asked for last.
        ready: how many answer requests.
        starting: how many are on their way.
        failed: how many end again and again instead of becoming ready.
        unschedulable: how many find no room.
    """

    ordered: int
    ready: int = 0
    starting: int = 0
    failed: int = 0
    unschedulable: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a decision was made from.

    Attributes:
        arrivals: requests a second planned for when ordering more.
        recent: requests a second of the last 10 s, which decide about fewer.
        capacity: requests a second of one replica; None while unknown.
        need: replicas that demand asks for now, before rules; None while unknown.
        stay: replicas that should stay if this demand stays; None while unknown.
        climb: requests a second when a replica ordered now answers, if demand goes on climbing; 0
            if it does not climb.
        season: requests a second that came at this time on other days; 0 for nothing to speak of.
        foreseen: replicas that these two ask for; 0 for none.
        patience: seconds within which demand has come back again and again, where that is worth
            waiting for; 0 otherwise.
        asked: somebody asks now.
        held: requests waiting in gateways.
        in_flight: requests at workers.
        cold_start: seconds a replica takes to start.
        idle: seconds without a request, as far as every gateway has told.
        gateways, silent: known gateways, and how many of them are silent.
    """

    workers: WorkerCounts
    arrivals: float
    recent: float
    capacity: float | None
    need: int | None
    stay: int | None
    climb: float
    season: float
    foreseen: int
    patience: float
    asked: bool
    held: int
    in_flight: int
    cold_start: float
    idle: float
    gateways: int
    silent: int

    @property
    def window(self) -> float:
        """Seconds for which demand must have been lower before a replica goes."""
        return max(down_window(self.cold_start), self.patience)


@dataclass(frozen=True, slots=True)
class Decision:
    """A number of replicas, the rule that set it, and one line for people."""

    desired: int
    rule: Rule
    reason: str
    inputs: Inputs

    @property
    def hold(self) -> bool:
        """Whether missing data kept the number from being lowered."""
        return self.rule is Rule.HOLD

    def __str__(self) -> str:
        return f"{self.inputs.workers.ordered} → {self.desired} ({self.rule}): {self.reason}"


class Recommender:
    """The memory behind the decisions for one revision of one service.

    Args:
        rules: bounds; may be replaced at any time through the attribute.
        now: when this memory begins, on the clock of every other call.
        proven: the revision is known to have been ready before, so it need not start to prove it.
    """

    def __init__(self, rules: Rules, now: float, *, proven: bool = False) -> None:
        self.rules = rules
        self.proven = proven
        self._demand = DemandWindow()
        self._trend = Trend()
        self._capacity = ReplicaCapacity()
        self._cold_starts = ColdStarts()
        self._needs = PeakWindow(HOLD_DOWN_SECONDS[1])
        self._returns = Returns(HOLD_DOWN_SECONDS[1])
        self._began_at = now
        self._ready = 0
        self._ready_since = now
        self._starting_since = now

    def __repr__(self) -> str:
        return (
            f"<Recommender {self.rules} {self._demand!r} {self._capacity!r} {self._cold_starts!r}>"
        )

    def successor(self, now: float) -> "Recommender":
        """The memory for a revision that is to take over this one's demand.

        What a replica does and how long it starts are a first guess for the new one too.
        """
        memory = deepcopy(self)
        memory.proven = False
        memory._began_at = memory._ready_since = memory._starting_since = now
        memory._ready = 0
        return memory

    def traffic(self, now: float) -> Traffic:
        """The demand at ``now``."""
        return self._demand.traffic(now)

    def observe(self, record: wire.Demand, now: float) -> None:
        """Take one demand record of this service, received at ``now``."""
        self._demand.observe(record, now)
        if record.arrivals:
            self._trend.observe(record.arrivals, now)

    def forget(self, gateway: str) -> None:
        """A gateway is gone for good; without this its silence holds the number for minutes."""
        self._demand.forget(gateway)

    def started(self, seconds: float) -> None:
        """A replica became ready so long after its order."""
        self._cold_starts.add(seconds)

    def decide(
        self,
        workers: WorkerCounts,
        now: float,
        *,
        unheard: int = 0,
        usual: Callable[[float], float] | None = None,
    ) -> Decision:
        """The number wanted at ``now``.

        Args:
            unheard: gateways that exist but have never reported here: their share is unknown too.
            usual: requests a second that other days brought from this time to so many seconds on.
        """
        traffic = self._demand.traffic(now)
        if unheard:
            traffic = replace(
                traffic,
                gateways=traffic.gateways + unheard,
                silent=traffic.silent + unheard,
                complete_since=None,
            )
        self._learn(traffic, workers, now)
        if workers.ready and not self.proven:
            self.proven = True
            self._began_at = now  # Proving itself is no demand, but it starts the idle clock.
        inputs = self._inputs(traffic, workers, now, usual or _nothing)
        needed_at = self._needs.last(workers.ordered + 1)
        # A need that nobody knows may have been all that runs.
        self._needs.add(workers.ordered if inputs.stay is None else inputs.stay, now)
        seen = _known_seconds(traffic, traffic.complete_since or 0.0)
        peak = self._needs.highest(inputs.window, now)
        patience = max(GIVE_BACK_SECONDS, inputs.cold_start)
        recent = self._needs.highest(patience, now) if seen >= patience else workers.ordered
        decision = choose(self.rules, inputs, peak, seen, self.proven)
        decision = bound(self.rules, give_back(decision, recent))
        # One that wakes for a lone request would idle for longer than that request waits.
        alone = decision.desired == 1
        if decision.desired > workers.ordered and needed_at is not None and not alone:
            self._returns.came_back(now - needed_at, now)
        self._note(decision)
        return decision

    def _note(self, decision: Decision) -> None:
        """Learn from what was decided."""
        if decision.rule is Rule.IDLE:
            self._demand.settle()
            self._returns.waited(decision.inputs.idle)
        elif decision.rule is Rule.DOWN and 2 * decision.desired <= decision.inputs.workers.ordered:
            # Fewer that go may be what was there beyond the burst, to drain what had waited.
            self._returns.waited(decision.inputs.window)

    def _learn(self, traffic: Traffic, workers: WorkerCounts, now: float) -> None:
        if not workers.starting:
            self._starting_since = now
        disturbed = 0 < now - self._starting_since <= DISTURBED_SECONDS
        self._capacity.reported(traffic.service_seconds, only_more=disturbed)
        if workers.ready != self._ready:
            self._ready, self._ready_since = workers.ready, now
        # First in, first out: whoever has waited the whole window proves that no replica was idle.
        # One that has just become ready has not answered for the whole window, though.
        settled = now - self._ready_since >= SETTLE_SECONDS
        if settled and self._ready and traffic.oldest_held_seconds >= SHORT and not traffic.silent:
            each = traffic.completions / self._ready
            self._capacity.saturated(each, now, only_more=disturbed)

    def _inputs(
        self, traffic: Traffic, workers: WorkerCounts, now: float, usual: Callable[[float], float]
    ) -> Inputs:
        recent = max(traffic.arrivals_low, traffic.arrivals_10s)
        arrivals = max(recent, traffic.arrivals_60s)
        cold_start = self._cold_starts.typical()
        capacity = planned_capacity(self.rules, self._capacity.estimate(now), traffic)
        climb, season = self._foreseen(traffic, arrivals, now, usual)
        foreseen = replicas_foreseen(max(climb, season), capacity, asleep=workers.ordered == 0)
        need = stay = None
        if capacity is not None:
            drain = max(DRAIN_SECONDS, cold_start)
            need = replicas_for(arrivals, traffic.held, capacity, drain)
            stay = replicas_for(recent, traffic.held, capacity, drain)
            stay = max(stay, math.ceil(recent / (capacity * DOWN_UTILISATION)), foreseen)
        quiet_since = max(self._began_at, traffic.active_at or 0, traffic.complete_since or 0)
        return Inputs(
            workers=workers,
            arrivals=arrivals,
            recent=recent,
            capacity=capacity,
            need=need,
            stay=stay,
            climb=climb,
            season=season,
            foreseen=foreseen,
            patience=self._patience(capacity, cold_start),
            asked=traffic.asked,
            held=traffic.held,
            in_flight=traffic.in_flight,
            cold_start=cold_start,
            idle=_known_seconds(traffic, quiet_since),
            gateways=traffic.gateways,
            silent=traffic.silent,
        )

    def _patience(self, capacity: float | None, cold_start: float) -> float:
        patience = self._returns.patience() if self.rules.foresight else 0.0
        return patience if patience <= worth_waiting(capacity, cold_start) else 0.0

    def _foreseen(
        self, traffic: Traffic, arrivals: float, now: float, usual: Callable[[float], float]
    ) -> tuple[float, float]:
        """Requests a second by trend and by season; nothing while a gateway's share is unknown."""
        if traffic.complete_since is None or not self.rules.foresight:
            return 0.0, 0.0
        cold_start = self._cold_starts.typical()
        climb = self._trend.foreseen(now, cold_start, traffic.complete_since)
        season = usual(cold_start)
        # Who sleeps is woken, and who is awake kept so, for what would wake it within a start.
        if season * cold_start < 1.0:
            season = 0.0
        return (min(climb, 2 * arrivals) if climb > arrivals else 0.0), season


def _nothing(ahead: float) -> float:
    """What is usual where nobody has kept count."""
    return 0.0


def _known_seconds(traffic: Traffic, since: float) -> float:
    """How much of the time since ``since`` every gateway has told about; the rest is unknown."""
    if traffic.complete_since is None or traffic.known_until is None:
        return 0.0
    return max(0.0, traffic.known_until - since)


def choose(rules: Rules, inputs: Inputs, peak: int, seen: float, proven: bool) -> Decision:
    """What demand asks for, before bounds.

    Args:
        peak: the most replicas that had to stay at any time of the window.
        seen: seconds for which every gateway has reported without a gap.
        proven: the revision has been ready once.
    """
    ordered = inputs.workers.ordered

    def decided(desired: int, rule: Rule, reason: str) -> Decision:
        return Decision(desired, rule, reason, inputs)

    if not proven and ordered < rules.initial_replicas:
        return decided(rules.initial_replicas, Rule.INITIAL, "the revision proves itself")
    if ordered == 0:
        return _choose_asleep(inputs)
    wanted = None if inputs.need is None else max(inputs.need, inputs.foreseen)
    if wanted is not None and wanted > ordered:
        rule, reason = _why_more(inputs)
        return decided(wanted, rule, reason)
    if inputs.gateways == 0 or inputs.silent:
        known = f"{inputs.silent} of {inputs.gateways} gateways are silent"
        return decided(ordered, Rule.HOLD, known if inputs.gateways else "no gateway has reported")
    alive = keep_alive(rules, inputs.cold_start)
    if rules.idle_after is None:
        alive = max(alive, inputs.patience)
    if proven and rules.min_replicas == 0 and inputs.idle >= alive and not inputs.season:
        return decided(0, Rule.IDLE, f"no request for {inputs.idle:.0f} s of {alive:.0f} s")
    if wanted is None:
        return decided(ordered, Rule.HOLD, _nothing_learnt(inputs))
    enough = max(wanted, 1)
    if enough >= ordered:
        return decided(ordered, Rule.STEADY, _load(inputs))
    window = inputs.window
    if seen < window:
        return decided(ordered, Rule.HOLD, f"demand is known for {seen:.0f} s of {window:.0f} s")
    lower = max(peak, enough)
    if lower >= ordered:
        return decided(ordered, Rule.WINDOW, f"{peak} were needed within {window:.0f} s")
    return decided(lower, Rule.DOWN, f"{lower} have been enough for {window:.0f} s")


def give_back(decision: Decision, recent: int) -> Decision:
    """Take back orders that do not answer yet once demand has gone; they serve nobody.

    Args:
        recent: the most replicas that had to stay at any time of the last few seconds.
    """
    workers = decision.inputs.workers
    if decision.rule not in (Rule.WINDOW, Rule.HOLD) or decision.inputs.silent:
        return decision
    pending = workers.starting + workers.unschedulable
    if not pending or decision.inputs.stay is None:
        return decision
    needed = max(1, recent, decision.inputs.need or 0, decision.inputs.foreseen)
    lower = max(needed, workers.ordered - pending)
    if lower >= decision.desired:
        return decision
    reason = f"{decision.desired - lower} that do not answer yet are not needed any more"
    return Decision(lower, Rule.DOWN, reason, decision.inputs)


def _nothing_learnt(inputs: Inputs) -> str:
    if inputs.arrivals or inputs.held or inputs.in_flight:
        return "no answer has been seen to learn from"
    return "ready, nobody has asked yet" if inputs.workers.ready else "no replica is ready yet"


def _choose_asleep(inputs: Inputs) -> Decision:
    if inputs.asked:
        # Who asked may have been refused meanwhile, or have left.
        reason = f"requests held: {inputs.held}" if inputs.held else "somebody has just asked"
        return Decision(max(1, inputs.need or 1, inputs.foreseen), Rule.WAKE, reason, inputs)
    if inputs.foreseen:
        return Decision(inputs.foreseen, Rule.SEASON, _usually(inputs), inputs)
    return Decision(0, Rule.STEADY, "asleep, nobody asks", inputs)


def _why_more(inputs: Inputs) -> tuple[Rule, str]:
    capacity = inputs.capacity or math.inf
    if inputs.foreseen > (inputs.need or 0):
        if inputs.season >= inputs.climb:
            return Rule.SEASON, _usually(inputs)
        return Rule.TREND, _climbing(inputs)
    if math.ceil(inputs.arrivals / (capacity * UTILISATION) - 1e-9) >= (inputs.need or 0):
        return Rule.ARRIVALS, _load(inputs)
    return Rule.BACKLOG, f"requests held: {inputs.held}, {_load(inputs)}"


def _load(inputs: Inputs) -> str:
    return f"{inputs.arrivals:.1f} req/s, a replica does {inputs.capacity or 0:.1f}"


def _climbing(inputs: Inputs) -> str:
    start = f"{inputs.climb:.1f} when a replica has started, in {inputs.cold_start:.0f} s"
    return f"{inputs.arrivals:.1f} req/s and climbing: {start}"


def _usually(inputs: Inputs) -> str:
    return f"{inputs.season:.1f} req/s came at this time on other days"


def bound(rules: Rules, decision: Decision) -> Decision:
    """Apply what holds whatever the demand: blocked orders, floor, ceiling."""
    workers = decision.inputs.workers
    # Where some answer, the revision is sound: one that fails is its node's matter, or passes.
    stuck = workers.unschedulable or (workers.failed and not workers.ready)
    if stuck and 0 < workers.ordered < decision.desired:
        reason = (
            f"{workers.failed} replicas fail and {workers.unschedulable} find no room;"
            f" {decision.desired} would be wanted"
        )
        decision = Decision(workers.ordered, Rule.BLOCKED, reason, decision.inputs)
    if decision.desired < rules.min_replicas:
        reason = (
            f"minReplicas is {rules.min_replicas}; without it there would be {decision.desired}"
        )
        return Decision(rules.min_replicas, Rule.FLOOR, reason, decision.inputs)
    if decision.desired > rules.max_replicas:
        reason = f"maxReplicas is {rules.max_replicas}; {decision.reason}"
        return Decision(rules.max_replicas, Rule.CEILING, reason, decision.inputs)
    return decision
