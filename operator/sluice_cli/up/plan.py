"""Which worker processes to start, drain and end: a pure plan over what is there.

``control.py`` calls :func:`plan_instances` for each service, each turn, and carries the actions
out. Applying a plan and planning again at the same moment gives an empty plan. A rollout surges:
workers of the new revision start beside the old ones, the table is switched when they are ready,
and only then are the old ones drained.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from sluice_cli.up.instances import ALIVE, Fleet, Instance, Phase, Room, Wanted

PROPAGATION_SECONDS = 0.5
"""From leaving the table to SIGTERM: the gateway re-reads the table in about 0.1 s."""
DRAIN_SECONDS = 45.0
"""From SIGTERM to SIGKILL: longer than a worker's own drain."""
CHANGED = "the model on disk, or what Sluice makes of it, has changed"
"""All that another answer digest says of the same revision: both are in it."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker of ``revision``."""

    revision: str
    reason: str


@dataclass(frozen=True, slots=True)
class Promote:
    """From now on ``revision`` serves."""

    revision: str
    reason: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Take the instance out of the table."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM: finish what is running, then end."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL."""

    name: str
    reason: str


Action = Start | Promote | Retire | Stop | Kill


class Plan(NamedTuple):
    """What to do now, and what keeps the rest from being done.

    Attributes:
        obstacle: for people; empty when nothing is left undone.
        unschedulable: workers that this machine has no room for.
    """

    actions: list[Action]
    obstacle: str = ""
    unschedulable: int = 0


def plan_instances(wanted: Wanted, fleet: Fleet, room: Room, now: float) -> Plan:
    """Decide the next steps from ``fleet`` to ``wanted``. Pure; ``now`` in monotonic seconds."""
    actions = list(_end_leaving(fleet, now))
    unfit = list(_remove_unfit(fleet))
    actions += unfit
    gone = {action.name for action in unfit}
    fleet = replace(fleet, instances=tuple(i for i in fleet.instances if i.name not in gone))

    steps = _steps(wanted, fleet, fleet.serving, room, now)
    reason = _promotion(wanted, fleet, room)
    if not reason and not any(start.revision == wanted.revision for start in steps.starts):
        # Nothing more of the wanted revision starts; once the others have, it may be out of memory.
        starts = len(steps.starts)
        reason = _promotion(wanted, fleet, Room(room.cores - starts, room.memory - starts))
    if reason:
        assert wanted.revision is not None
        actions.append(Promote(wanted.revision, reason))
        steps = _steps(wanted, fleet, wanted.revision, room, now)
    return Plan([*actions, *steps.retired, *steps.starts], steps.obstacle, steps.unschedulable)


class _Steps(NamedTuple):
    """From a fleet to the wanted numbers, while one revision serves."""

    starts: list[Start]
    retired: list[Retire]
    obstacle: str
    unschedulable: int


def _steps(wanted: Wanted, fleet: Fleet, serving: str | None, room: Room, now: float) -> _Steps:
    starts: list[Start] = []
    retired: list[Retire] = []
    obstacle, unschedulable = "", 0
    targets = _targets(wanted, serving)
    for revision, target in targets.items():
        alive = fleet.alive(revision)
        retired += [Retire(i.name, wanted.reason) for i in _victims(alive, len(alive) - target)]
        surge = revision != serving
        count, homeless, blocked = _starts(revision, target - len(alive), fleet, room, surge, now)
        starts += [Start(revision, wanted.reason)] * count
        room = Room(room.cores - count, room.memory - count)
        obstacle = obstacle or blocked
        unschedulable += homeless
    why = "replaced by a new revision" if wanted.revision else "the service was removed"
    for instance in fleet.instances:
        if instance.phase in ALIVE and instance.revision not in targets:
            retired.append(Retire(instance.name, why))
    return _Steps(starts, retired, obstacle, unschedulable)


def _end_leaving(fleet: Fleet, now: float) -> Iterator[Action]:
    for instance in fleet.instances:
        age = now - instance.since
        if instance.phase == Phase.LEAVING and age >= PROPAGATION_SECONDS:
            yield Stop(instance.name, "out of the table")
        elif instance.phase == Phase.STOPPING and age >= DRAIN_SECONDS:
            yield Kill(instance.name, f"still running {DRAIN_SECONDS:.0f} s after SIGTERM")


def _remove_unfit(fleet: Fleet) -> Iterator[Retire | Kill]:
    for instance in fleet.instances:
        if instance.stuck and instance.phase in ALIVE:
            yield Kill(instance.name, "shows no progress")
        elif instance.outdated and instance.phase == Phase.READY:
            yield Retire(instance.name, CHANGED)


def _promotion(wanted: Wanted, fleet: Fleet, room: Room) -> str:
    """Why the wanted revision takes over now; empty when it does not, or already has."""
    if wanted.revision is None or wanted.revision == fleet.serving:
        return ""
    if fleet.serving is None:
        return "first revision"
    ready, alive = fleet.ready(wanted.revision), fleet.alive(wanted.revision)
    old = min(wanted.replicas.get(fleet.serving, 0), len(fleet.ready(fleet.serving)))
    if len(ready) >= max(wanted.initial_replicas, old):
        return f"{len(ready)} ready" if ready else "nothing is running"
    if ready and len(ready) == len(alive) and room.memory <= 0:
        return f"{len(ready)} ready, no memory for more"
    return ""


def _targets(wanted: Wanted, serving: str | None) -> dict[str, int]:
    """How many workers each revision should have; those not named, none."""
    if wanted.revision is None:
        return {}
    revisions = [r for r in (serving, wanted.revision) if r is not None]
    return {revision: wanted.replicas.get(revision, 0) for revision in revisions}


def _victims(alive: list[Instance], surplus: int) -> list[Instance]:
    """Those that cost least to lose: not ready yet, then idle, then young."""
    if surplus <= 0:
        return []
    cheap = sorted(alive, key=lambda i: (i.phase == Phase.READY, i.in_flight, -i.number))
    return cheap[:surplus]


def _starts(
    revision: str, missing: int, fleet: Fleet, room: Room, surge: bool, now: float
) -> tuple[int, int, str]:
    """How many of the missing workers start now, how many find no room, and what keeps the rest."""
    if missing <= 0:
        return 0, 0, ""
    crashes = fleet.crashes.get(revision)
    alive = fleet.alive(revision)
    if crashes and not any(i.since > crashes.at for i in fleet.ready(revision)):
        wait = crashes.at + crashes.backoff_seconds - now
        if wait > 0:
            return 0, 0, f"restart in {math.ceil(wait)} s, after {crashes.count} crashes"
        if crashes.count > 1:  # One at a time, until one has shown that it works again.
            missing = min(missing, 1 - sum(i.phase == Phase.STARTING for i in alive))
    # During a rollout the load only moves, so that memory alone bounds the surge.
    fits = room.memory if surge else min(room.memory, room.cores)
    starts = max(0, min(missing, max(fits, 0 if alive else 1)))
    homeless = max(0, missing - starts)
    if homeless:
        short = "memory" if room.memory <= fits else "CPU cores"
        return starts, homeless, f"no {short} for {homeless} more"
    return starts, 0, ""
