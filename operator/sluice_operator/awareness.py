"""Whether gateways know one service, and since when none does.

``fleet`` keeps one of these per service and looks at it every few seconds; ``status`` tells what
has lasted. Gateways learn of services by watches of their own: one that has just begun to be heard
speaks of all it knows within a second or two, and that it has not yet is no news.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

LOOK_SECONDS: Final = 5.0
MISSED_SECONDS: Final = 15.0
"""For so long no gateway must have known a service before that is told."""


class Gateways(NamedTuple):
    """How many there are.

    Attributes:
        heard: those whose demand is known.
        unheard: others, that take requests.
        serving: those of the heard that take requests, and so have listed the services.
    """

    heard: int = 0
    unheard: int = 0
    serving: int = 0

    @property
    def asked(self) -> int:
        """Those who should know a service: the heard; while there are none, the others."""
        return self.heard or self.unheard


@dataclass(slots=True)
class Awareness:
    """What was seen, look by look.

    Attributes:
        missed: gateways take requests and none has known the service for a while; until one does.
        awaited: the last status was made while no gateway knew it.
    """

    missed: bool = False
    awaited: bool = False
    _missed_since: float | None = None

    def told(self, aware: int, gateways: Gateways) -> None:
        """A status is made while ``aware`` of the gateways know the service."""
        self.awaited = not aware and gateways.asked > 0

    def look(self, aware: int, gateways: Gateways, now: float) -> bool:
        """Note what is so ``now`` (monotonic); whether the status is to say something else."""
        before = (self.missed, self.awaited)
        if aware or not gateways.serving:
            self._missed_since = None
        elif self._missed_since is None:
            self._missed_since = now
        elif now - self._missed_since >= MISSED_SECONDS:
            self.missed = True
        if aware:
            self.missed = False
        if aware or not gateways.asked:
            self.awaited = False
        return (self.missed, self.awaited) != before
