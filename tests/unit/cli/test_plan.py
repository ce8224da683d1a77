"""The plan of worker processes: each rule by itself, with moved time."""

import pytest

from sluice_cli.up.instances import Crashes, Fleet, Phase, Room, after_crash
from sluice_cli.up.plan import (
    CHANGED,
    DRAIN_SECONDS,
    PROPAGATION_SECONDS,
    Kill,
    Promote,
    Retire,
    Start,
    Stop,
    plan_instances,
)
from tests.support.fleets import instance, plan, wanted


def test_the_first_revision_serves_at_once_and_starts() -> None:
    assert plan(wanted(replicas=2), Fleet(None)) == [
        Promote("a", "first revision"),
        Start("a", "demand"),
        Start("a", "demand"),
    ]


def test_nothing_to_do_gives_an_empty_plan() -> None:
    assert plan(wanted(replicas=2), Fleet("a", (instance(1), instance(2)))) == []


def test_starting_instances_count() -> None:
    fleet = Fleet("a", (instance(1, phase=Phase.STARTING),))
    assert plan(wanted(replicas=1), fleet) == []


def test_scaling_down_drains_the_starting_then_the_idlest_then_the_youngest() -> None:
    fleet = Fleet(
        "a",
        (
            instance(1, in_flight=0),
            instance(2, in_flight=5),
            instance(3, in_flight=0),
            instance(4, phase=Phase.STARTING),
        ),
    )
    victims = [a.name for a in plan(wanted(replicas=1), fleet) if isinstance(a, Retire)]
    assert victims == ["m-4", "m-3", "m-1"]


def test_to_zero() -> None:
    assert plan(wanted(replicas=0), Fleet("a", (instance(1),))) == [Retire("m-1", "demand")]


def test_a_leaving_instance_is_stopped_after_the_table_has_spread_and_killed_after_the_drain() -> (
    None
):
    leaving = Fleet("a", (instance(1, phase=Phase.LEAVING, since=10.0),))
    none = wanted(replicas=0)
    assert plan(none, leaving, now=10.0 + PROPAGATION_SECONDS - 0.01) == []
    assert plan(none, leaving, now=10.0 + PROPAGATION_SECONDS) == [Stop("m-1", "out of the table")]
    stopping = Fleet("a", (instance(1, phase=Phase.STOPPING, since=10.0),))
    assert plan(none, stopping, now=10.0 + DRAIN_SECONDS - 0.01) == []
    assert [type(a) for a in plan(none, stopping, now=10.0 + DRAIN_SECONDS)] == [Kill]


def test_a_leaving_instance_is_replaced_when_it_is_wanted_again() -> None:
    fleet = Fleet("a", (instance(1, phase=Phase.LEAVING, since=1000.0),))
    assert plan(wanted(replicas=1), fleet) == [Start("a", "demand")]


# Rollouts -----------------------------------------------------------------------------------------


def test_a_rollout_starts_the_new_before_it_touches_the_old() -> None:
    fleet = Fleet("old", (instance(1, "old"), instance(2, "old")))
    assert plan(wanted("a", replicas=2), fleet) == [Start("a", "demand"), Start("a", "demand")]


def test_a_rollout_waits_until_as_many_new_ones_are_ready_as_carry_the_load() -> None:
    fleet = Fleet(
        "old",
        (
            instance(1, "old"),
            instance(2, "old"),
            instance(3, "a"),
            instance(4, "a", Phase.STARTING),
        ),
    )
    assert plan(wanted("a", replicas=2), fleet) == []


def test_a_rollout_switches_and_drains_the_old_in_one_plan() -> None:
    fleet = Fleet("old", (instance(1, "old"), instance(2, "a")))
    assert plan(wanted("a"), fleet) == [
        Promote("a", "1 ready"),
        Retire("m-1", "replaced by a new revision"),
    ]


def test_a_sleeping_service_proves_its_new_revision_before_it_switches() -> None:
    target = wanted("a", replicas=0)
    target = type(target)("a", {"old": 0, "a": 1}, 1, "proving")
    assert plan(target, Fleet("old")) == [Start("a", "proving")]


def test_without_initial_replicas_a_sleeping_service_switches_at_once() -> None:
    fleet = Fleet("old")
    assert plan(wanted("a", replicas=0, initial=0), fleet) == [Promote("a", "nothing is running")]


def test_a_failing_new_revision_leaves_the_old_one_serving() -> None:
    crashes = {"a": Crashes(4, at=999.0)}
    fleet = Fleet("old", (instance(1, "old"),), crashes)
    result = plan_instances(wanted("a"), fleet, Room(9, 9), 1000.0)
    assert result.actions == []
    assert result.obstacle == "restart in 3 s, after 4 crashes"


def test_going_back_to_the_old_revision_drops_the_new_one() -> None:
    fleet = Fleet("old", (instance(1, "old"), instance(2, "a", Phase.STARTING)))
    assert plan(wanted("old"), fleet) == [Retire("m-2", "replaced by a new revision")]


def test_a_rollout_is_content_with_what_the_memory_holds() -> None:
    fleet = Fleet("old", (instance(1, "old"), instance(2, "old"), instance(3, "a")))
    assert plan(wanted("a", replicas=2), fleet, room=Room(0, 0))[0] == Promote(
        "a", "1 ready, no memory for more"
    )


def test_a_removed_service_is_drained() -> None:
    fleet = Fleet("a", (instance(1), instance(2, phase=Phase.STARTING)))
    assert plan(wanted(None, replicas=0), fleet) == [
        Retire("m-1", "the service was removed"),
        Retire("m-2", "the service was removed"),
    ]


# Crashes, room, health ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "seconds"), [(1, 0), (2, 1), (3, 2), (4, 4), (7, 32), (8, 60), (5000, 60)]
)
def test_back_off_doubles_to_a_minute(count: int, seconds: float) -> None:
    assert Crashes(count, at=0.0).backoff_seconds == seconds


def test_a_crash_after_a_steady_time_or_long_ago_starts_the_count_anew() -> None:
    before = Crashes(5, at=100.0)
    assert after_crash(None, 0.0, 7.0) == Crashes(1, 7.0)
    assert after_crash(before, 3.0, 110.0) == Crashes(6, 110.0)
    assert after_crash(before, 30.0, 140.0) == Crashes(1, 140.0)
    assert after_crash(before, 0.0, 800.0) == Crashes(1, 800.0)


def test_a_crashed_instance_is_replaced_at_once_the_first_time() -> None:
    fleet = Fleet("a", (instance(2, since=1.0),), {"a": Crashes(1, at=1000.0)})
    assert plan(wanted(replicas=2), fleet) == [Start("a", "demand")]


def test_after_several_crashes_one_starts_at_a_time() -> None:
    crashes = {"a": Crashes(3, at=900.0)}
    assert plan(wanted(replicas=3), Fleet("a", (), crashes)) == [Start("a", "demand")]
    starting = Fleet("a", (instance(1, phase=Phase.STARTING, since=950.0),), crashes)
    assert plan(wanted(replicas=3), starting) == []
    works_again = Fleet("a", (instance(1, since=950.0),), crashes)
    assert len(plan(wanted(replicas=3), works_again)) == 2


def test_cores_and_memory_bound_the_starts_but_never_the_first() -> None:
    result = plan_instances(wanted(replicas=4), Fleet("a"), Room(cores=2, memory=9), 0.0)
    assert len(result.actions) == 2
    assert (result.unschedulable, result.obstacle) == (2, "no CPU cores for 2 more")
    result = plan_instances(wanted(replicas=2), Fleet("a"), Room(cores=9, memory=-3), 0.0)
    assert len(result.actions) == 1
    assert (result.unschedulable, result.obstacle) == (1, "no memory for 1 more")


def test_a_stuck_instance_is_ended_and_replaced() -> None:
    fleet = Fleet("a", (instance(1, stuck=True),))
    assert plan(wanted(), fleet) == [Kill("m-1", "shows no progress"), Start("a", "demand")]


def test_an_instance_of_an_older_model_folder_is_replaced() -> None:
    fleet = Fleet("a", (instance(1, outdated=True), instance(2)))
    assert plan(wanted(replicas=2), fleet) == [
        Retire("m-1", CHANGED),
        Start("a", "demand"),
    ]
