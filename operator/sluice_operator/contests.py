"""Repairs that do not last: somebody writes a child again and again, against us.

Each repair of a Deployment replaces its pods, so a fight would cost more than what it is about.
``reconcile`` asks here before a repair, tells it afterwards, and lets the owner know.
"""

from dataclasses import dataclass
from typing import Final

from sluice_operator.state import Key
from sluice_operator.steps import Apply

FREE: Final = 5
"""So many repairs of the same thing follow at once."""
PAUSE_SECONDS: Final = 10.0
"""Before the next one; twice as long after each."""
LONGEST_SECONDS: Final = 600.0
"""Between two repairs at most; what has lasted for twice as long is forgotten."""


@dataclass(slots=True)
class Contest:
    """One thing that is repaired: how often, and when last."""

    told: str
    repairs: int = 0
    last: float = 0.0

    def rest(self, now: float) -> float:
        """Seconds until the next repair; none left when it is not positive."""
        if self.repairs < FREE:
            return 0.0
        pause = min(LONGEST_SECONDS, PAUSE_SECONDS * 2.0 ** (self.repairs - FREE))
        return self.last + pause - now


class Contests:
    """What was repaired lately, by service. Times are monotonic."""

    def __init__(self) -> None:
        self._contests: dict[Key, dict[str, Contest]] = {}

    def __repr__(self) -> str:
        return f"<Contests of {len(self._contests)} services>"

    def waits(self, key: Key, step: Apply, now: float) -> bool:
        """Whether a repair has to wait; :meth:`rest` says for how long."""
        self._forget_old(key, now)
        contest = self._contests.get(key, {}).get(_told(step))
        return contest is not None and contest.rest(now) > 0

    def repaired(self, key: Key, step: Apply, now: float) -> bool:
        """Count a repair; whether it is the first of its kind."""
        told = _told(step)
        contest = self._contests.setdefault(key, {}).setdefault(told, Contest(told))
        contest.repairs += 1
        contest.last = now
        return contest.repairs == 1

    def told(self, key: Key, now: float) -> str:
        """What did not last so far, in words; empty for nothing."""
        contests = self._contests.get(key, {}).values()
        return "; ".join(sorted(each.told for each in contests if each.rest(now) > 0))

    def rest(self, key: Key, now: float) -> float:
        """Seconds until it shows whether a repair lasts; 0 for nothing to wait for."""
        rests = (each.rest(now) for each in self._contests.get(key, {}).values())
        return min((rest for rest in rests if rest > 0), default=0.0)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._contests.pop(key, None)

    def _forget_old(self, key: Key, now: float) -> None:
        contests = self._contests.get(key, {})
        for told in [t for t, each in contests.items() if now >= each.last + 2 * LONGEST_SECONDS]:
            del contests[told]
        if not contests:
            self._contests.pop(key, None)


def _told(step: Apply) -> str:
    return f"{step.object['kind']} {step.object['metadata']['name']}: {step.repairs}"
