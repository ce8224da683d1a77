"""What holds of every plan, from any state in between."""

from hypothesis import example, given
from hypothesis import strategies as st

from sluice_cli.up.instances import ALIVE, Crashes, Fleet, Instance, Phase, Room, Wanted
from sluice_cli.up.plan import Kill, Promote, Retire, Start, Stop, plan_instances
from tests.support.fleets import carried_out, room_after

NOW = 1000.0
REVISIONS = ("a", "b", "c")


@st.composite
def instances(draw: st.DrawFn) -> tuple[Instance, ...]:
    count = draw(st.integers(0, 8))
    return tuple(
        Instance(
            name=f"m-{number}",
            number=number,
            revision=draw(st.sampled_from(REVISIONS)),
            phase=draw(st.sampled_from(Phase)),
            since=draw(st.floats(900.0, NOW)),
            in_flight=draw(st.integers(0, 3)),
            outdated=draw(st.booleans()),
            stuck=draw(st.booleans()),
        )
        for number in range(count)
    )


fleets = st.builds(
    Fleet,
    st.one_of(st.none(), st.sampled_from(REVISIONS)),
    instances(),
    st.dictionaries(
        st.sampled_from(REVISIONS), st.builds(Crashes, st.integers(1, 9), st.floats(900.0, NOW))
    ),
)
wants = st.builds(
    Wanted,
    st.one_of(st.none(), st.sampled_from(REVISIONS)),
    st.dictionaries(st.sampled_from(REVISIONS), st.integers(0, 5)),
    st.integers(0, 3),
    st.just("demand"),
)
rooms = st.builds(Room, st.integers(-3, 8), st.integers(-3, 8))


_OTHERS_TAKE_THE_LAST_MEMORY = example(
    Wanted("a", {"a": 1, "b": 1}, 2, "demand"),
    Fleet("b", (Instance("m-0", 0, "a", Phase.READY, 900.0),), {}),
    Room(0, 1),
)


@given(wants, fleets, rooms)
@_OTHERS_TAKE_THE_LAST_MEMORY
def test_planning_again_after_carrying_out_plans_nothing(
    wanted: Wanted, fleet: Fleet, room: Room
) -> None:
    result = plan_instances(wanted, fleet, room, NOW)
    after = carried_out(fleet, result.actions, NOW)
    again = plan_instances(wanted, after, room_after(room, result), NOW)
    assert again.actions == []


@given(wants, fleets, rooms)
def test_every_action_concerns_an_instance_once_and_in_the_right_phase(
    wanted: Wanted, fleet: Fleet, room: Room
) -> None:
    phases = {i.name: i.phase for i in fleet.instances}
    named = []
    for action in plan_instances(wanted, fleet, room, NOW).actions:
        match action:
            case Retire(name, _):
                assert phases[name] in ALIVE
            case Stop(name, _):
                assert phases[name] == Phase.LEAVING
            case Kill(name, _):
                assert phases[name] in (*ALIVE, Phase.STOPPING)
            case Start() | Promote():
                continue
        named.append(name)
    assert len(named) == len(set(named))


@given(wants, fleets, rooms)
def test_the_serving_revision_loses_no_good_worker_before_another_one_serves(
    wanted: Wanted, fleet: Fleet, room: Room
) -> None:
    result = plan_instances(wanted, fleet, room, NOW)
    after = carried_out(fleet, result.actions, NOW)
    if wanted.revision is None or after.serving != fleet.serving or fleet.serving is None:
        return
    good = [i for i in fleet.ready(fleet.serving) if not i.stuck and not i.outdated]
    needed = wanted.replicas.get(fleet.serving, 0)
    assert len(after.ready(fleet.serving)) >= min(len(good), needed)


@given(wants, fleets, rooms)
def test_another_revision_serves_only_once_it_is_ready_to(
    wanted: Wanted, fleet: Fleet, room: Room
) -> None:
    for action in plan_instances(wanted, fleet, room, NOW).actions:
        if isinstance(action, Promote) and fleet.serving is not None:
            ready = len(fleet.ready(action.revision))
            good = [i for i in fleet.ready(fleet.serving) if not i.stuck and not i.outdated]
            needed = min(wanted.replicas.get(fleet.serving, 0), len(good))
            assert ready or (needed == 0 and wanted.initial_replicas == 0)


@given(wants, fleets, rooms)
def test_no_more_start_than_wanted_or_than_fit(wanted: Wanted, fleet: Fleet, room: Room) -> None:
    result = plan_instances(wanted, fleet, room, NOW)
    for revision in REVISIONS:
        starts = sum(isinstance(a, Start) and a.revision == revision for a in result.actions)
        after = carried_out(fleet, result.actions, NOW)
        if starts:
            assert len(after.alive(revision)) <= wanted.replicas.get(revision, 0)
            assert starts <= max(room.memory, 1)


@given(wants, fleets)
def test_with_room_and_without_crashes_the_wanted_number_is_reached(
    wanted: Wanted, fleet: Fleet
) -> None:
    calm = Fleet(fleet.serving, fleet.instances)
    after = carried_out(calm, plan_instances(wanted, calm, Room(99, 99), NOW).actions, NOW)
    for revision in {wanted.revision, after.serving} - {None}:
        expected = wanted.replicas.get(str(revision), 0) if wanted.revision else 0
        assert len(after.alive(revision)) == expected
