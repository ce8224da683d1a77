"""What a service's status says, in sentences: ``kubectl get inf NAME -o yaml | sluice explain -``.

Pure; ``main`` reads and prints. What stands behind a rule is told at length in docs/scaling.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

RULES: Final = {
    "initial": "the revision has to prove first that it works",
    "wake": "it slept and was asked for",
    "arrivals": "more requests arrive than the replicas before should carry",
    "backlog": "the requests that wait would not be answered in time",
    "trend": "requests climb, and a replica takes its time to start",
    "season": "so much came at this time on the days before",
    "steady": "it fits the demand",
    "window": "fewer would do, but not for long enough yet",
    "down": "fewer have been enough for long enough",
    "idle": "nobody has asked for long enough",
    "hold": "data are missing, so it is not lowered",
    "blocked": "replicas ordered before find no room or fail, so no more are ordered",
    "rollout": "a revision beside the one that runs must be able to take over its share",
    "fixed": "spec.scaling.mode says so",
    "floor": "spec.scaling.minReplicas asks for more than demand does",
    "ceiling": "spec.scaling.maxReplicas allows no more",
}
"""Why a number is what it is, by the rule in ``status.scaling.rule``."""


def explained(resource: Mapping[str, Any]) -> Iterator[str]:
    """Lines about one InferenceService as the API server has it."""
    metadata = resource["metadata"]
    status = resource.get("status") or {}
    name = f"{metadata.get('namespace', 'default')}/{metadata['name']}"
    if not status:
        yield f"{name}: the operator has not looked at it yet."
        return
    scaling = status.get("scaling") or {}
    ready, desired = status.get("readyReplicas", 0), scaling.get("desired", 0)
    yield f"{name}: replicas wanted {desired}, ready {ready}."
    if rule := scaling.get("rule"):
        yield f"  Why {desired}: {RULES.get(rule, 'a rule of a newer operator')} ({rule})."
        yield f"  From: {scaling.get('reason') or 'nothing that was told'}"
    for entry in status.get("revisions") or ():
        counts = f"{entry.get('readyReplicas', 0)} of {entry.get('desiredReplicas', 0)} ready"
        yield f"  Revision {entry['name']} ({entry.get('role') or 'unknown'}): {counts}."
    for entry in status.get("conditions") or ():
        message = entry.get("message", "")
        yield f"  {entry['type']} is {entry['status']}, {entry['reason']}: {message}"
    if status.get("observedGeneration", 0) < metadata.get("generation", 0):
        yield "  This is about the spec before the last change; the operator has not seen it yet."
