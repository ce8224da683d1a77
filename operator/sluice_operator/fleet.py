"""What scaling knows of every service, and the numbers it wants.

Every replica of the operator keeps one :class:`Fleet` and feeds it alike, so that a new leader
decides from the same memory; only the leader's numbers are written. ``demand_feed`` brings what
gateways say, ``reconcile`` asks for numbers whenever something changed, ``app`` lets :meth:`tick`
run each second for the services that are not at rest.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from sluice_api import wire
from sluice_api.inference_service import InferenceService
from sluice_api.names import FIELD_MANAGER, SCALER_FIELD_MANAGER
from sluice_operator.awareness import LOOK_SECONDS as AWARE_LOOK_SECONDS
from sluice_operator.awareness import Awareness, Gateways
from sluice_operator.scaling.demand import Traffic
from sluice_operator.scaling.lineup import Lineup, Terms, lineup_of, terms_of
from sluice_operator.scaling.recommend import Decision, Rule, WorkerCounts
from sluice_operator.scaling.season import Season, newest
from sluice_operator.scaling.service import ServiceScaler
from sluice_operator.scaling.sightings import Sightings
from sluice_operator.scaling.starts import LONGEST_SECONDS, Starts
from sluice_operator.state import Key, Learnt, Observed, Wanted
from sluice_operator.status import is_unknown
from sluice_operator.workers import deployment_of, worker_counts

TICK_SECONDS: Final = 1.0
TOUCHED_PER_TICK: Final = 200
"""Bounds what a tick costs a replica that does not lead and has just started."""
SEASON_SECONDS: Final = 10.0
"""How often it is looked what is usual now for services that are at rest, and what to write down of
the others."""
UNKNOWN_SECONDS: Final = 120.0
"""How long records are kept of a service that no watch has brought."""
FIXED_RULE: Final = "fixed"
HELD_BACK: Final = frozenset({Rule.BLOCKED, Rule.CEILING})
"""Rules that people should hear of although the number stays."""
TELL_SECONDS: Final = 60.0


class Signal(NamedTuple):
    """What gateways see of one revision; None where data are missing."""

    revision: str
    traffic: Traffic | None


@dataclass(slots=True)
class _View:
    """What the last reconcile saw; the ticks between decide from it."""

    terms: Terms
    lineup: Lineup
    counts: dict[str, WorkerCounts]


@dataclass(slots=True)
class _Member:
    """One service.

    Attributes:
        uid: of the resource; empty until a reconcile has seen it.
        view: None until a reconcile has seen the service.
        wanted: what was answered last.
        told: number, rule and reason of each revision, and since when; see :func:`_tell`.
        week: the season as it was written last, for the status; empty for never.
    """

    scaler: ServiceScaler
    born_at: float
    uid: str = ""
    view: _View | None = None
    wanted: dict[str, Wanted] = field(default_factory=dict)
    told: dict[str, tuple[Wanted, float]] = field(default_factory=dict)
    sightings: Sightings = field(default_factory=Sightings)
    starts: Starts = field(default_factory=Starts)
    season: Season = field(default_factory=Season)
    week: str = ""
    terms: tuple[tuple[str, int], Terms] | None = None
    awareness: Awareness = field(default_factory=Awareness)

    def aware(self) -> int:
        """How many gateways know it, and the revision that answers."""
        if self.view is None:
            return len(self.sightings.gateways)
        return self.sightings.aware(self.view.lineup.stable)


class Fleet:
    """The memory of scaling.

    Args:
        changed: called with a service that should be reconciled now.
        observe: a service as the watches show it; None for one that is gone.
        clock: seconds, monotonic.
        wall: seconds since the epoch, for the time of day; never for intervals.
        decided: told the rule of each number that is another than before.
    """

    def __init__(
        self,
        changed: Callable[[Key], None],
        observe: Callable[[Key], Observed | None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        decided: Callable[[str], None] = lambda rule: None,
    ) -> None:
        self._changed = changed
        self._observe = observe
        self._clock = clock
        self._wall = wall
        self._decided = decided
        self._season_due = 0.0
        self._members: dict[Key, _Member] = {}
        self._awake: set[Key] = set()
        self._touched: dict[Key, None] = {}
        self._gateways = Gateways()
        self._aware_due = 0.0

    def __repr__(self) -> str:
        return (
            f"<Fleet {len(self._members)} services, {len(self._awake)} awake,"
            f" {self._gateways.unheard} gateways unheard>"
        )

    async def run(self) -> None:
        """Tick, on a grid that does not drift, for ever."""
        due = self._clock() + TICK_SECONDS
        while True:
            await asyncio.sleep(max(0.0, due - self._clock()))
            due = max(due + TICK_SECONDS, self._clock())
            self.tick(self._clock())

    # What comes in -------------------------------------------------------------------------------

    def observe(self, record: wire.Demand, now: float) -> None:
        """Take one record of a gateway; what cannot wait for the tick is reconciled at once."""
        key = Key(record.namespace, record.service)
        member = self._members.get(key) or self._join(key, now)
        member.scaler.observe(record, now)
        if record.arrivals and not record.workers_only and not _is_canary(member, record.revision):
            member.season.observe(record.arrivals, self._wall())
        news = member.sightings.observe(record)
        if record.wake or record.held or record.arrivals or record.in_flight:
            self._awake.add(key)
        if member.view is None:
            return
        if news or (_urgent(record) and self._decided_anew(member, now)):
            self._changed(key)

    def forget_gateway(self, gateway: str) -> None:
        """A gateway process is gone for good, and its share of everything with it."""
        for key, member in self._members.items():
            member.scaler.forget(gateway)
            if member.sightings.forget(gateway) and member.view is not None:
                self._changed(key)

    def set_gateways(self, gateways: Gateways) -> None:
        """So many there are; while some are unheard, numbers are not lowered."""
        self._gateways = gateways

    def touch(self, key: Key) -> None:
        """Something about a service has changed.

        Whoever leads decides anew in the reconcile that follows, and that is all; the others look
        at the next ticks, so that they know the service as well as the leader does.
        """
        self._touched[key] = None

    def remove(self, key: Key) -> None:
        """A service is gone."""
        self._touched.pop(key, None)
        self._members.pop(key, None)
        self._awake.discard(key)

    def _join(self, key: Key, now: float) -> _Member:
        member = self._members[key] = _Member(ServiceScaler(now), now)
        self._awake.add(key)
        return member

    # What is wanted ------------------------------------------------------------------------------

    def decide(self, observed: Observed, now: float) -> dict[str, Wanted]:
        """The number of each revision that is to run, from everything known at ``now``.

        Empty for a service that is paused, that is being deleted, or whose spec this version
        cannot read: what runs is left as it is.
        """
        key = observed.key
        self._touched.pop(key, None)
        member = self._members.get(key) or self._join(key, now)
        uid = str(observed.resource["metadata"]["uid"])
        if member.uid not in ("", uid):
            member = self._join(key, now)  # deleted and made anew between two looks
        member.uid = uid
        if "deletionTimestamp" in observed.resource["metadata"]:
            return {}
        terms = _terms(member, observed)
        if terms is None:
            return member.wanted
        lineup = lineup_of(terms, _answering(observed))
        counts = {name: _counts(observed, name) for name in lineup.revisions()}
        if member.view is None:
            member.awareness.missed = is_unknown(observed.resource.get("status") or {})
        member.view = _View(terms, lineup, counts)
        member.scaler.line_up(lineup, terms.rules, _proven(observed), now)
        member.sightings.retain(_existing(observed) | set(lineup.revisions()))
        for revision, seconds in member.starts.note(observed.pods):
            member.scaler.started(revision, seconds)
        if not member.told:
            member.told = _told_before(lineup, observed, now)
        written = str((observed.resource.get("status") or {}).get("scaling", {}).get("week", ""))
        member.season.restore(written, self._wall())
        member.week = newest(member.week, written)
        before, member.wanted = member.wanted, self._wanted(member, now)
        for name, wanted in member.wanted.items():
            if name in before and before[name].desired != wanted.desired:
                self._decided(wanted.rule)
        if _is_at_rest(member):
            self._awake.discard(key)
        else:
            self._awake.add(key)
        return member.wanted

    def learnt(self, key: Key) -> Learnt:
        """What the gateways told about the service and its workers."""
        member = self._members.get(key)
        if member is None:
            return Learnt(unaware=self._gateways.asked)
        aware = member.aware()
        member.awareness.told(aware, self._gateways)
        return replace(
            member.sightings.learnt(),
            week=member.week,
            aware=aware,
            unaware=max(0, self._gateways.asked - aware),
            unknown=member.awareness.missed and not aware,
        )

    def tick(self, now: float) -> None:
        """Look at every service that is not at rest; reconcile those whose number changes."""
        for key in list(islice(self._touched, TOUCHED_PER_TICK)):
            observed = self._observe(key)
            if observed is None:
                self.remove(key)
            else:
                self.decide(observed, now)
        for key in list(self._awake):
            member = self._members[key]
            if member.view is None:
                if now - member.born_at > UNKNOWN_SECONDS:
                    self.remove(key)
            elif self._decided_anew(member, now):
                self._changed(key)
        if now >= self._season_due:
            self._season_due = now + SEASON_SECONDS
            self._look_at_seasons(now)
        if now >= self._aware_due:
            self._aware_due = now + AWARE_LOOK_SECONDS
            for key, member in self._members.items():
                news = member.awareness.look(member.aware(), self._gateways, now)
                if news and member.view is not None:
                    self._changed(key)

    def _look_at_seasons(self, now: float) -> None:
        """Wake who is usually asked about now, and have written what is worth it."""
        at = self._wall()
        for key, member in self._members.items():
            if member.view is None or not member.view.terms.follow_demand:
                continue
            season = member.season
            if season.is_worth_writing(member.week, at):
                member.week = season.text()
                self._changed(key)
                continue
            rests = key not in self._awake
            if rests and season.expected(at, LONGEST_SECONDS) and self._decided_anew(member, now):
                self._changed(key)

    def _decided_anew(self, member: _Member, now: float) -> bool:
        """Whether the numbers are others than were answered last."""
        wanted = self._wanted(member, now)
        return {name: w.desired for name, w in wanted.items()} != {
            name: w.desired for name, w in member.wanted.items()
        }

    def _wanted(self, member: _Member, now: float) -> dict[str, Wanted]:
        view = member.view
        assert view is not None
        if view.terms.paused:
            return {}
        if not view.terms.follow_demand:
            return _fixed(view)
        at = self._wall()

        def usual(ahead: float) -> float:
            return member.season.expected(at, ahead + member.season.lead_seconds)

        decisions = member.scaler.decide(
            view.lineup, view.counts, now, unheard=self._gateways.unheard, usual=usual
        )
        member.told = {
            revision: _tell(member.told.get(revision), decision, now)
            for revision, decision in decisions.items()
        }
        return {revision: wanted for revision, (wanted, _) in member.told.items()}

    # What can be asked ---------------------------------------------------------------------------

    def signals(self, key: Key) -> tuple[Signal, ...]:
        """What gateways see of the service now, by revision; empty for an unknown one."""
        now = self._clock()
        member = self._members.get(key)
        if member is None or member.view is None:
            return ()
        traffic = member.scaler.traffic(now)
        lineup = member.view.lineup
        # The next revision's memory holds the stable one's demand, which must not count twice.
        shares = [name for name in (lineup.stable, lineup.canary) if name]
        return tuple(Signal(name, self._complete(traffic[name])) for name in shares)

    def _complete(self, traffic: Traffic) -> Traffic | None:
        known = traffic.gateways and not traffic.silent and not self._gateways.unheard
        return traffic if known else None

    def decisions(self) -> Iterator[tuple[Key, str, Decision]]:
        """The last decision of every revision of every service."""
        for key, member in self._members.items():
            for revision, decision in member.scaler.decisions.items():
                yield key, revision, decision

    def explain(self) -> list[dict[str, Any]]:
        """The same for people and programs, as JSON: the answer of ``/internal/decisions``."""
        return [
            {
                "service": str(key),
                "revision": revision,
                "desired": decision.desired,
                "rule": decision.rule.value,
                "reason": decision.reason,
                "ordered": decision.inputs.workers.ordered,
                "ready": decision.inputs.workers.ready,
                "arrivalsPerSecond": round(decision.inputs.arrivals, 3),
                "climbPerSecond": round(decision.inputs.climb, 3),
                "seasonPerSecond": round(decision.inputs.season, 3),
                "replicaPerSecond": decision.inputs.capacity,
                "held": decision.inputs.held,
                "inFlight": decision.inputs.in_flight,
                "coldStartSeconds": round(decision.inputs.cold_start, 3),
                "idleSeconds": round(decision.inputs.idle, 3),
                "gateways": decision.inputs.gateways,
                "silentGateways": decision.inputs.silent,
            }
            for key, revision, decision in self.decisions()
        ]


def _terms(member: _Member, observed: Observed) -> Terms | None:
    """Read once a generation; None if this version cannot read the spec."""
    metadata = observed.resource["metadata"]
    version = (str(metadata.get("uid", "")), int(metadata.get("generation", 0)))
    if member.terms and member.terms[0] == version:
        return member.terms[1]
    document = {name: part for name, part in observed.resource.items() if name != "status"}
    try:
        terms = terms_of(InferenceService.model_validate(document))
    except ValidationError:
        return None
    member.terms = (version, terms)
    return terms


def _is_canary(member: _Member, revision: str) -> bool:
    return member.view is not None and revision == member.view.lineup.canary


def _answering(observed: Observed) -> str:
    return str((observed.resource.get("status") or {}).get("revision") or "")


def _counts(observed: Observed, revision: str) -> WorkerCounts:
    """What a revision's replicas do, and how many were ordered last.

    While it is awake that is what the status says and not what somebody else has written into the
    Deployment: a decision would take the other's number for its own, and keep it.
    """
    counts = worker_counts(observed, revision)
    entries = (observed.resource.get("status") or {}).get("revisions") or ()
    wanted = next((int(e.get("desiredReplicas", 0)) for e in entries if e["name"] == revision), 0)
    deployment = deployment_of(observed, revision)
    if deployment is None or not wanted or counts.ordered == wanted:
        return counts
    owners = observed.replicas_managers.get(deployment["metadata"]["name"], frozenset())
    if owners & {FIELD_MANAGER, SCALER_FIELD_MANAGER}:
        return counts
    # After `kubectl scale` nobody owns the field.
    return replace(counts, ordered=wanted)


def _proven(observed: Observed) -> list[str]:
    revisions = observed.resource.get("status", {}).get("revisions") or ()
    return [str(entry.get("name")) for entry in revisions if entry.get("proven")]


def _existing(observed: Observed) -> frozenset[str]:
    revisions = observed.resource.get("status", {}).get("revisions") or ()
    return frozenset(str(entry.get("name")) for entry in revisions)


def _fixed(view: _View) -> dict[str, Wanted]:
    reason = f"spec.scaling.mode is {view.terms.mode}: minReplicas run"
    wanted = Wanted(view.terms.rules.min_replicas, FIXED_RULE, reason)
    return dict.fromkeys(view.lineup.revisions(), wanted)


def _tell(
    before: tuple[Wanted, float] | None, decision: Decision, now: float
) -> tuple[Wanted, float]:
    """What status should say: why the number is what it is, not what each second brings.

    The rule that set a number stays beside it. That a number is held back is told at once, and
    that it no longer is only after a while: status is not to change with the weather.
    """
    wanted = Wanted(decision.desired, decision.rule.value, decision.reason)
    if before is None or before[0].desired != wanted.desired:
        return wanted, now
    was_held_back = before[0].rule in HELD_BACK
    if decision.rule in HELD_BACK:
        return before if was_held_back else (wanted, now)
    if was_held_back and now - before[1] >= TELL_SECONDS:
        return wanted, now
    return before


def _told_before(lineup: Lineup, observed: Observed, now: float) -> dict[str, tuple[Wanted, float]]:
    """What an operator before this one told of the stable revision."""
    scaling = observed.resource.get("status", {}).get("scaling") or {}
    if not scaling.get("rule"):
        return {}
    reason = str(scaling.get("reason", ""))
    wanted = Wanted(int(scaling.get("desired", 0)), str(scaling["rule"]), reason)
    return {lineup.stable: (wanted, now)}


def _is_at_rest(member: _Member) -> bool:
    """Nothing runs, nothing is wanted: only a record or a watch event can change that."""
    view = member.view
    assert view is not None
    if not view.terms.follow_demand:
        return True
    if any(wanted.desired for wanted in member.wanted.values()):
        return False
    return not any(c.ordered or c.ready or c.starting for c in view.counts.values())


def _urgent(record: wire.Demand) -> bool:
    """What is worth a decision before the next tick: a wake, a queue, a step in arrivals."""
    return record.wake or record.held > 0 or record.interval_seconds < 0.9 * TICK_SECONDS
