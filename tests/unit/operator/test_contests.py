"""Repairs that do not last: free at first, then ever more rarely, forgotten in the end."""

from sluice_operator.contests import FREE, LONGEST_SECONDS, PAUSE_SECONDS, Contests
from sluice_operator.state import Key
from sluice_operator.steps import Apply

KEY = Key("team", "minilm")


def repair(what: str = "spec.paused was set by kubectl-rollout") -> Apply:
    item = {"kind": "Deployment", "metadata": {"name": "minilm-1"}}
    return Apply(item, what, repairs=what)


def test_the_first_repairs_are_free_and_the_pauses_grow_to_an_end() -> None:
    contests = Contests()
    now, pauses = 0.0, []
    for number in range(FREE + 10):
        assert not contests.waits(KEY, repair(), now)
        assert contests.repaired(KEY, repair(), now) is (number == 0)
        pauses.append(contests.rest(KEY, now))
        assert contests.waits(KEY, repair(), now) is (pauses[-1] > 0)
        assert bool(contests.told(KEY, now)) is (pauses[-1] > 0)
        now += pauses[-1]
    assert pauses[: FREE - 1] == [0.0] * (FREE - 1)
    assert pauses[FREE - 1 : FREE + 2] == [PAUSE_SECONDS, 2 * PAUSE_SECONDS, 4 * PAUSE_SECONDS]
    assert pauses[-1] == LONGEST_SECONDS


def test_each_thing_of_each_service_is_counted_for_itself() -> None:
    contests = Contests()
    for _ in range(FREE):
        contests.repaired(KEY, repair(), 0.0)
    assert contests.waits(KEY, repair(), 0.0)
    assert not contests.waits(KEY, repair("spec.strategy.type was changed"), 0.0)
    assert not contests.waits(Key("team", "other"), repair(), 0.0)
    assert contests.told(KEY, 0.0) == "Deployment minilm-1: spec.paused was set by kubectl-rollout"


def test_what_has_lasted_is_forgotten() -> None:
    contests = Contests()
    for _ in range(FREE):
        contests.repaired(KEY, repair(), 0.0)
    assert contests.rest(KEY, PAUSE_SECONDS) == 0.0
    assert contests.told(KEY, PAUSE_SECONDS) == ""
    contests.waits(KEY, repair(), 2 * LONGEST_SECONDS)
    assert contests.repaired(KEY, repair(), 2 * LONGEST_SECONDS), "as if it were the first"
    contests.forget(KEY)
    assert repr(contests) == "<Contests of 0 services>"
