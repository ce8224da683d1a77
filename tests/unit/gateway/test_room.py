"""Rosters: a set that is a list as well, whatever comes and goes."""

from hypothesis import given
from hypothesis import strategies as st

from sluice_gateway.room import Roster

STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "drop", "replace"]), st.integers(0, 4)), min_size=8
)


@given(STEPS)
def test_holds_what_a_set_would_hold_and_each_once(steps: list[tuple[str, int]]) -> None:
    roster: Roster[int] = Roster()
    model: set[int] = set()
    for step, member in steps:
        if step == "put":
            roster.put(member)
            model.add(member)
        elif step == "drop":
            roster.drop(member)
            model.discard(member)
        else:
            roster.replace(range(member))
            model = set(range(member))
        assert sorted(roster.members) == sorted(model)
        assert all((each in roster) == (each in model) for each in range(5))
    assert repr(roster) == f"<Roster of {len(model)}>"
