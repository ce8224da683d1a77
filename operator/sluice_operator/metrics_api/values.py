"""The metrics that can be asked for, and where each comes from. One table; adding one is a line.

``desired_replicas`` is read from status, so it survives a change of leader; the others are what
gateways report to this very process, and are missing while any gateway is silent.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from sluice_api.names import METRIC_DESIRED, REVISION_LABEL
from sluice_operator.metrics_api.label_selectors import Selector, matches
from sluice_operator.scaling.demand import MIDDLE, Traffic
from sluice_operator.state import Object

Signals = Iterable[tuple[str, Traffic | None]]
"""Revision and its demand; None where data are missing."""


class Metric(NamedTuple):
    """One metric of an InferenceService.

    Attributes:
        window: seconds it is a mean over; None for a value of the moment.
        read: the value from a revision's demand; None for what stands in status.
    """

    name: str
    window: int | None
    read: Callable[[Traffic], float] | None


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric(METRIC_DESIRED, None, None),
        Metric("arrivals_per_second", int(MIDDLE), lambda traffic: traffic.arrivals_10s),
        Metric("in_flight_requests", None, lambda traffic: float(traffic.in_flight)),
        Metric("held_requests", None, lambda traffic: float(traffic.held)),
    )
}


def value_of(
    metric: Metric, resource: Object, signals: Callable[[], Signals], selector: Selector
) -> float | None:
    """The sum over the service's revisions that the selector takes; None when there is no value."""
    if metric.read is None:
        values = _from_status(resource, selector)
    else:
        values = _from_demand(metric.read, signals(), selector)
    found = list(values)
    if not found or None in found:
        return None
    return sum(value for value in found if value is not None)


def _from_status(resource: Object, selector: Selector) -> Iterator[float | None]:
    for entry in (resource.get("status") or {}).get("revisions") or ():
        if matches(selector, {REVISION_LABEL: str(entry.get("name"))}):
            desired = entry.get("desiredReplicas")
            yield None if desired is None else float(desired)


def _from_demand(
    read: Callable[[Traffic], float], signals: Signals, selector: Selector
) -> Iterator[float | None]:
    for revision, traffic in signals:
        if matches(selector, {REVISION_LABEL: revision}):
            yield None if traffic is None else read(traffic)


def quantity(value: float) -> str:
    """As a Kubernetes quantity: whole, or in thousandths."""
    thousandths = round(value * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{thousandths}m" if rest else str(whole)
