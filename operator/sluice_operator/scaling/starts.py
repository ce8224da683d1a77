"""How long pods took to start, read from the pods themselves.

``fleet`` keeps one of these per service and hands what it finds to the revision's recommender.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

from sluice_api.names import REVISION_LABEL
from sluice_operator.state import Object

LONGEST_SECONDS = 1800.0
"""More is no start: the pod waited for something else, or was ready before and is so again."""


class Starts:
    """Remembers which pods have been counted; as many names as there are pods."""

    def __init__(self) -> None:
        self._counted: set[str] = set()

    def __repr__(self) -> str:
        return f"<Starts of {len(self._counted)} pods>"

    def note(self, pods: Iterable[Object]) -> Iterator[tuple[str, float]]:
        """Revision and seconds from creation to readiness, once for each pod.

        A pod whose container was restarted says nothing about a start.
        """
        present = set[str]()
        found = list[tuple[str, float]]()
        for pod in pods:
            uid = str(pod["metadata"].get("uid", ""))
            present.add(uid)
            if uid in self._counted:
                continue
            ready = _ready_since(pod)
            if ready is None:
                continue
            self._counted.add(uid)
            seconds = (ready - _time(pod["metadata"]["creationTimestamp"])).total_seconds()
            revision = pod["metadata"].get("labels", {}).get(REVISION_LABEL, "")
            if not _restarted(pod) and seconds <= LONGEST_SECONDS:
                # The API server counts whole seconds; less than half of one is not told apart.
                found.append((revision, max(seconds, 0.5)))
        self._counted &= present
        return iter(found)


def _ready_since(pod: Object) -> datetime | None:
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("status") == "True":
            return _time(condition["lastTransitionTime"])
    return None


def _restarted(pod: Object) -> bool:
    containers = pod.get("status", {}).get("containerStatuses") or ()
    return any(container.get("restartCount") for container in containers)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
