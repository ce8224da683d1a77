"""What must hold of several revisions' numbers together, whatever gateways and pods report."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_operator.scaling.lineup import Lineup
from sluice_operator.scaling.recommend import WorkerCounts
from sluice_operator.scaling.rules import Rules
from sluice_operator.scaling.service import ServiceScaler
from tests.support.demand_records import Gateway

COUNT = st.integers(0, 300)
LINEUPS = st.builds(
    Lineup,
    stable=st.sampled_from("ab"),
    next=st.sampled_from(["", "c"]),
    canary=st.sampled_from(["", "d"]),
    canary_weight=st.integers(0, 100),
)
SECOND = st.fixed_dictionaries(
    {
        "lineup": LINEUPS,
        "elapsed": st.sampled_from([0.05, 1.0, 1.0, 1.0, 20.0]),
        "records": st.dictionaries(
            st.sampled_from("abcd"),
            st.fixed_dictionaries(
                {},
                optional={
                    "arrivals": COUNT,
                    "held": COUNT,
                    "in_flight": COUNT,
                    "completions": COUNT,
                    "service_seconds": st.floats(0.0, 50.0),
                    "wake": st.booleans(),
                    "workers_only": st.booleans(),
                },
            ),
        ),
        "ready": st.dictionaries(st.sampled_from("abcd"), st.integers(0, 10)),
        "obeys": st.booleans(),
        "unheard": st.sampled_from([0, 0, 0, 1]),
    }
)


@settings(max_examples=150, deadline=None)  # it is not about speed
@given(st.integers(0, 3), st.integers(1, 12), st.lists(SECOND, max_size=30))
def test_whatever_happens(low: int, span: int, seconds: list[dict[str, Any]]) -> None:
    rules = Rules(min_replicas=low, max_replicas=low + span, initial_replicas=1)
    scaler, gateway, now = ServiceScaler(0.0), Gateway(), 0.0
    ordered = dict.fromkeys("abcd", 0)
    for second in seconds:
        now += second["elapsed"]
        lineup = second["lineup"]
        for revision, counts in second["records"].items():
            record = gateway.record(**counts)
            record.revision = revision
            scaler.observe(record, now)
        scaler.line_up(lineup, rules, (), now)
        counts_now = {
            revision: WorkerCounts(
                ordered[revision],
                ready := min(ordered[revision], second["ready"].get(revision, 0)),
                ordered[revision] - ready,
            )
            for revision in lineup.revisions()
        }
        decisions = scaler.decide(lineup, counts_now, now, unheard=second["unheard"])

        assert set(decisions) == set(lineup.revisions())
        stable = decisions[lineup.stable].desired
        for revision, decision in decisions.items():
            assert rules.min_replicas <= decision.desired <= rules.max_replicas
            assert decision.reason
            if second["unheard"] and revision == lineup.stable:
                assert decision.desired >= counts_now[revision].ordered, "missing data"
        if lineup.next:
            assert stable == 0 or decisions[lineup.next].desired >= 1, "the switch loses nobody"
            if not counts_now[lineup.next].ready:
                assert decisions[lineup.next].desired <= max(1, rules.min_replicas)
        if lineup.canary and lineup.canary_weight and stable:
            assert decisions[lineup.canary].desired >= 1
        if second["obeys"]:
            ordered |= {revision: made.desired for revision, made in decisions.items()}
