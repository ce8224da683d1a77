"""What the children tell one by one, as one: pages of metrics, and what each knows of the services.

Pure; ``supervisor`` asks the children and puts their answers in here. Counters and histograms are
sums. Of gauges, those that count something of the process's own are sums too; those that show what
all children look at in common are not.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from prometheus_client.utils import floatToGoString

from sluice_api import metric_names

COMMON_GAUGES: Final = {
    metric_names.GATEWAY_CACHE_HEARING.name: min,
    metric_names.GATEWAY_ENDPOINTS.name: max,
    metric_names.GATEWAY_PRECOMPUTED.name: max,
    metric_names.GATEWAY_REDIS_UP.name: min,
    metric_names.GATEWAY_LIMITS_SHARED.name: min,
    metric_names.GATEWAY_KEYS.name: max,
    metric_names.GATEWAY_KEYS_AGE.name: max,
}
"""Every child sees the same workers; of their views the wider counts, and the worse of Redis."""
OWN_GAUGES: Final = frozenset((metric_names.GATEWAY_DISCOVERY_AGE.name,))
"""What the supervisor alone knows: children hear of the services from it."""

Samples = dict[str, float]
"""Values by name and labels, as they stand on the page."""


class Family:
    """One metric on a page.

    Attributes:
        head: its lines of help and type.
    """

    __slots__ = ("head", "kind", "name", "samples")

    def __init__(self, name: str) -> None:
        self.name = name
        self.head: list[str] = []
        self.kind = "untyped"
        self.samples: Samples = {}

    def __repr__(self) -> str:
        return f"<Family {self.name} {self.kind}, {len(self.samples)} samples>"


Page = dict[str, Family]


def read_page(text: str) -> Page:
    """A page of metrics in Prometheus' text form, as ``exposition.expose`` writes it."""
    page: Page = {}
    family = Family("")
    for line in text.split("\n"):
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            if name != family.name:
                family = page[name] = Family(name)
            family.head.append(line)
            if word == "TYPE":
                family.kind = rest
        elif line:
            sample, _, value = line.rpartition(" ")
            family.samples[sample] = float(value)
    return page


def write_page(page: Page) -> str:
    lines: list[str] = []
    for family in page.values():
        lines += family.head
        lines += [f"{sample} {_text(value)}" for sample, value in family.samples.items()]
    return "\n".join(lines) + "\n" if lines else ""


def _text(value: float) -> str:
    return cast(str, floatToGoString(value))  # type: ignore[no-untyped-call]  # it has no annotations


def lasting(page: Page) -> Page:
    """What still counts of a page when its process is gone: what can only rise."""
    return {name: family for name, family in page.items() if family.kind != "gauge"}


def sum_pages(pages: Iterable[Page]) -> Page:
    """One page of many. Samples that only some have are there as well."""
    total: Page = {}
    for page in pages:
        for name, family in page.items():
            if name in OWN_GAUGES:
                continue
            into = total.get(name)
            if into is None:
                into = total[name] = Family(name)
                into.head, into.kind = family.head, family.kind
            _add(into, family.samples)
    return total


def _add(family: Family, samples: Samples) -> None:
    join = COMMON_GAUGES.get(family.name)
    values = family.samples
    for sample, value in samples.items():
        before = values.get(sample)
        if before is None:
            values[sample] = value
        else:
            values[sample] = before + value if join is None else join(before, value)


# /internal/services -------------------------------------------------------------------------------

_SUMMED: Final = frozenset(("waiting", "inFlight"))
_SUMMED_BY_NAME: Final = frozenset(("waitingByPriority",))


def merge_services(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``services`` of every child as one list.

    Requests are sums. Where the children differ in anything else, what one of those says is shown
    that is not ``ready``: whatever is not well must not be hidden by those who have seen it well.
    """
    by_name: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for answer in told:
        for service in answer.get("services", ()):
            by_name.setdefault((service["namespace"], service["name"]), []).append(service)
    return [_merge_tracks(views) for views in by_name.values()]


def _merge_tracks(views: list[dict[str, Any]]) -> dict[str, Any]:
    merged = _merge(views)
    endpoints: dict[str, list[dict[str, Any]]] = {}
    for view in views:
        for endpoint in view.get("endpoints", ()):
            endpoints.setdefault(endpoint["url"], []).append(endpoint)
    merged["endpoints"] = [_merge(seen) for seen in endpoints.values()]
    trials = [view["canary"] for view in views if view.get("canary")]
    if "canary" in merged:
        merged["canary"] = _merge_tracks(trials) if trials else None
    return merged


def _merge(views: list[dict[str, Any]]) -> dict[str, Any]:
    merged = dict(next((view for view in views if view.get("state") != "ready"), views[0]))
    for member in _SUMMED & merged.keys():
        merged[member] = sum(view.get(member, 0) for view in views)
    for member in _SUMMED_BY_NAME & merged.keys():
        merged[member] = {
            name: sum(view.get(member, {}).get(name, 0) for view in views)
            for name in merged[member]
        }
    return merged
