"""Whatever arrives, leaves, gives way or is found again: the tokens are those of ``generate``."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_worker.engines.decoder.network import CausalNetwork
from tests.support.decoding import STORES, HandEngine
from tests.support.language_models import END, greedy, random_model

MOST_TOKENS = 20
ROOM = 120


def _prompts() -> list[list[int]]:
    """Some alike at the beginning, some that repeat themselves, some of one token."""
    chance = random.Random(2)
    shared = [chance.randrange(2, 97) for _ in range(26)]
    own = [[chance.randrange(2, 97) for _ in range(size)] for size in (1, 2, 7, 16, 17, 33)]
    return [*own, shared, [*shared[:17], 5], [*shared, 9, 9], [8, 9, 10] * 8]


PROMPTS = _prompts()


@cache
def network() -> CausalNetwork:
    expected()
    return CausalNetwork(random_model("llama"))


@cache
def expected() -> list[list[int]]:
    """What ``generate`` writes after each prompt, its end token included."""
    model = random_model("llama")
    return [greedy(model, prompt, MOST_TOKENS) for prompt in PROMPTS]


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.integers(0, len(PROMPTS) - 1),
            st.integers(1, MOST_TOKENS),
            st.sampled_from([b"", b"other"]),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(STORES)),
    budget=st.sampled_from([1, 8, 24, 100]),
    room=st.sampled_from([56, 72, ROOM, 400]),
    actions=actions,
)
def test_tokens_are_those_of_generate(
    kind: str, budget: int, room: int, actions: list[tuple[object, ...]]
) -> None:
    store = STORES[kind](network(), room=room)
    engine = HandEngine(network(), store, budget=budget)
    submitted = []
    for action in actions:
        match action:
            case ("submit", int(number), int(most), bytes(salt)):
                stops = frozenset([END])
                pair = engine.submit(PROMPTS[number], most, stop_ids=stops, salt=salt)
                submitted.append((number, most, *pair))
            case ("cancel", int(number)) if submitted:
                submitted[number % len(submitted)][2].cancelled = True
            case ("step", int(count)):
                for _ in range(count):
                    engine.step()
    engine.finish()
    for number, most, sequence, heard in submitted:
        written = sequence.ids[sequence.prompt :]
        whole = expected()[number][:most]
        if heard.reason is None:
            assert sequence.cancelled
            assert written == whole[: len(written)]
        else:
            assert written == whole
            ended = END in whole
            assert heard.reason == ("stop" if ended else "length")
            assert heard.tokens == whole[: len(whole) - ended]
    assert store.used == 0


@pytest.mark.parametrize("kind", sorted(STORES))
def test_the_cases_that_matter_do_occur(kind: str) -> None:
    """The property above would hold of an engine that never shares, guesses or gives way."""
    store = STORES[kind](network(), room=72)
    engine = HandEngine(network(), store)
    for number in (6, 3, 9, 5, 6, 7):
        engine.submit(PROMPTS[number], MOST_TOKENS)
    engine.finish()
    assert engine.engine.scheduler.preemptions > 0
    sequence, _ = engine.submit(PROMPTS[6], MOST_TOKENS)
    other, _ = engine.submit(PROMPTS[6], MOST_TOKENS, salt=b"other")
    engine.finish()
    assert sequence.cached > 0
    assert other.cached == 0
