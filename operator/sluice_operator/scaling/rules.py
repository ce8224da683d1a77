"""What the spec says about scaling, in the units that decisions compute with."""

from dataclasses import dataclass

from sluice_api.inference_service import InferenceService


@dataclass(frozen=True, slots=True)
class Rules:
    """``spec.scaling``, resolved.

    Attributes:
        min_replicas, max_replicas: bounds of every decision; a floor of 0 lets the service sleep.
        initial_replicas: what a revision that has not proved itself starts with.
        concurrency: requests wanted at one replica on average; None plans by utilisation alone.
        idle_after: seconds without demand before sleep; None follows from the learnt start time.
        foresight: whether what is expected may raise the number; off only for comparison.
    """

    min_replicas: int = 0
    max_replicas: int = 4
    initial_replicas: int = 1
    concurrency: int | None = None
    idle_after: float | None = None
    foresight: bool = True


def rules_of(service: InferenceService) -> Rules:
    """The rules in a service's spec."""
    scaling = service.spec.scaling
    return Rules(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        initial_replicas=scaling.initial_replicas,
        concurrency=scaling.target.concurrency,
        idle_after=scaling.idle_after,
    )
