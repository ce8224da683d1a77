"""Which revisions of a service need a number of replicas, and by what rules. Pure.

``fleet`` reads a spec once a generation and keeps the :class:`Terms`; ``service`` decides for the
:class:`Lineup` that follows from them and from who answers now.
"""

from dataclasses import dataclass
from typing import Final

from sluice_api.inference_service import InferenceService, canary_of, revision_of
from sluice_operator.scaling.rules import Rules, rules_of

DECIDING_MODES: Final = frozenset({"hpa", "direct"})
"""In the others the number is ``minReplicas``, whatever the demand."""


@dataclass(frozen=True, slots=True)
class Lineup:
    """The revisions of a service that need a number.

    Attributes:
        stable: the one that answers.
        next: one that is to replace it; empty when there is none.
        canary: one on trial; empty when there is none.
        canary_weight: percent of the requests it gets.
    """

    stable: str
    next: str = ""
    canary: str = ""
    canary_weight: int = 0

    def revisions(self) -> tuple[str, ...]:
        """All of them, the stable one first."""
        return tuple(name for name in (self.stable, self.next, self.canary) if name)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a spec says that decisions need; the parsed spec itself would take 50 times the memory.

    Attributes:
        revision: of the spec.
        canary: revision of the canary; empty without one.
        mode: ``spec.scaling.mode``.
    """

    revision: str
    canary: str
    canary_weight: int
    rules: Rules
    mode: str
    paused: bool

    @property
    def follow_demand(self) -> bool:
        return self.mode in DECIDING_MODES and not self.paused


def terms_of(service: InferenceService) -> Terms:
    """What the spec says that decisions need."""
    trial, canary = canary_of(service), service.spec.rollout.canary
    return Terms(
        revision=revision_of(service),
        canary=revision_of(trial) if trial else "",
        canary_weight=canary.weight if canary else 0,
        rules=rules_of(service),
        mode=service.spec.scaling.mode,
        paused=service.spec.paused,
    )


def lineup_of(terms: Terms, answering: str) -> Lineup:
    """Which revisions need a number.

    Args:
        answering: the revision that answers, by the status; empty before there is one.
    """
    stable = answering or terms.revision
    return Lineup(
        stable=stable,
        next=terms.revision if terms.revision != stable else "",
        canary=terms.canary if terms.canary != stable else "",
        canary_weight=terms.canary_weight,
    )
