"""The facts that ``plan.py`` decides over: instances, crashes, what is wanted, what fits.

Plain values without clocks or processes; ``service.py`` takes them from the real workers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

STEADY_SECONDS = 30.0
"""A worker that was ready for so long has shown that its revision works."""
MAX_BACKOFF_SECONDS = 60.0
FORGET_SECONDS = 600.0
"""Crashes so long ago say nothing about the next one."""


class Phase(StrEnum):
    """Where an instance stands in its life, as the plan sees it."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """Out of the table; gets no new requests soon."""
    STOPPING = "stopping"
    """Told to drain and end."""
    KILLED = "killed"


ALIVE = (Phase.STARTING, Phase.READY)


@dataclass(frozen=True, slots=True)
class Instance:
    """One worker process.

    Attributes:
        number: order of start, within the service.
        since: when ``phase`` began.
        in_flight: requests it has now; the idlest is drained first.
        outdated: it loaded something else than a later worker of the same revision did.
        stuck: it has not shown progress for too long.
    """

    name: str
    number: int
    revision: str
    phase: Phase
    since: float
    in_flight: int = 0
    outdated: bool = False
    stuck: bool = False


@dataclass(frozen=True, slots=True)
class Crashes:
    """Ends of one revision's workers that nobody asked for, one soon after the other."""

    count: int
    at: float

    @property
    def backoff_seconds(self) -> float:
        """The first restart is at once, the next ones after 1, 2, 4 … seconds."""
        if self.count <= 1:
            return 0.0
        return min(MAX_BACKOFF_SECONDS, 2.0 ** min(self.count - 2, 10))


def after_crash(before: Crashes | None, ready_seconds: float, now: float) -> Crashes:
    """The count after one more crash, of a worker that had been ready for ``ready_seconds``."""
    if before is None or ready_seconds >= STEADY_SECONDS or now - before.at > FORGET_SECONDS:
        return Crashes(1, now)
    return Crashes(before.count + 1, now)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one service should have.

    Attributes:
        revision: of its spec now; None when the service was removed.
        replicas: by revision: of the wanted one, and of the one that serves if that is another.
        initial_replicas: ready ones that a revision must have before it serves.
        reason: why so many, for people.
    """

    revision: str | None
    replicas: Mapping[str, int]
    initial_replicas: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """What one service has.

    Attributes:
        serving: the revision the gateway sends requests to; None before the first plan.
        crashes: by revision.
    """

    serving: str | None
    instances: tuple[Instance, ...] = ()
    crashes: Mapping[str, Crashes] = field(default_factory=dict)

    def alive(self, revision: str | None) -> list[Instance]:
        """Its instances of ``revision`` that take requests, or will."""
        return [i for i in self.instances if i.revision == revision and i.phase in ALIVE]

    def ready(self, revision: str | None) -> list[Instance]:
        return [i for i in self.alive(revision) if i.phase == Phase.READY]


@dataclass(frozen=True, slots=True)
class Room:
    """How many more instances this machine holds.

    The first instance of a revision always fits: a service without any answers nobody.
    """

    cores: int
    memory: int
