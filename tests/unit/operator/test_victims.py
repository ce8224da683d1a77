"""Which pods go first: the idlest, and no write that says nothing new."""

from sluice_api import wire
from sluice_operator.scaling.victims import deletion_costs
from tests.support.observed_services import pod

PODS = [pod(name, "r", ready=True, ip=f"10.0.0.{number}") for number, name in enumerate("abc")]
LOAD = {
    f"10.0.0.{number}": wire.WorkerSeen(address=f"10.0.0.{number}", in_flight=count)
    for number, count in enumerate((5, 0, 2))
}


def test_the_idlest_go() -> None:
    assert deletion_costs(PODS, LOAD, 1) == {"b": -1}
    assert deletion_costs(PODS, LOAD, 2) == {"b": -1, "c": -1}


def test_what_stands_there_is_not_written_again_and_what_is_stale_is_taken_back() -> None:
    marked = [
        pod("a", "r", ip="10.0.0.0", cost="-1"),
        pod("b", "r", ip="10.0.0.1", cost="-1"),
        pod("c", "r", ip="10.0.0.2"),
    ]
    assert deletion_costs(marked, LOAD, 1) == {"a": 0}


def test_those_on_their_way_out_do_not_count() -> None:
    going = pod("b", "r", ip="10.0.0.1")
    going["metadata"]["deletionTimestamp"] = "2026-11-23T10:00:00Z"
    assert deletion_costs([PODS[0], going, PODS[2]], LOAD, 1) == {"c": -1}


def test_of_equally_idle_ones_the_youngest_goes() -> None:
    old = pod("a", "r", created="2026-11-23T09:00:00Z")
    young = pod("b", "r", created="2026-11-23T10:00:00Z")
    assert deletion_costs([old, young], {}, 1) == {"b": -1}
    assert deletion_costs([old, young], {}, 0) == {}
