"""Which pods go first when a revision loses replicas: the idlest, so that least work is drained.

``planning`` asks when it is about to lower a number. The ReplicaSet controller reads the answer
from an annotation, after its own rules (pods that are not ready go before ready ones).
"""

from collections.abc import Iterable, Mapping

from sluice_api import wire
from sluice_api.names import DELETION_COST
from sluice_operator.state import Object

VICTIM_COST = -1
"""Below the default of 0; what is written to those that should go."""


def deletion_costs(
    pods: Iterable[Object], workers: Mapping[str, wire.WorkerSeen], going: int
) -> dict[str, int]:
    """The annotation's new value by pod name, for those pods alone whose value is another now.

    Args:
        pods: of one revision.
        workers: by IP address, as the gateways see them; unknown ones count as idle.
        going: how many pods will be deleted.
    """
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def in_flight(pod: Object) -> int:
        seen = workers.get(pod.get("status", {}).get("podIP", ""))
        return seen.in_flight if seen else 0

    # Among equally idle ones the youngest: the older one has proved itself for longer.
    by_name = sorted(staying, key=lambda pod: pod["metadata"]["name"])
    youngest = sorted(
        by_name, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True
    )
    ranked = sorted(youngest, key=in_flight)
    victims = {pod["metadata"]["name"] for pod in ranked[: max(0, going)]}
    costs = {}
    for pod in staying:
        name = pod["metadata"]["name"]
        cost = VICTIM_COST if name in victims else 0
        if _cost(pod) != cost:
            costs[name] = cost
    return costs


def _cost(pod: Object) -> int:
    written = pod["metadata"].get("annotations", {}).get(DELETION_COST, "0")
    try:
        return int(written)
    except ValueError:
        return 0
