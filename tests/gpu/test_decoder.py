"""Text generation as on a GPU: pages, the kernel that reads them, graphs. `make test-gpu`.

Each test runs on a pretended GPU too (``tests.support.accelerator``).
"""

import random
import threading
from collections.abc import Iterator

import pytest

from sluice_api.shapes.generated import FinishReason
from sluice_worker.engines.decoder.engine import Cancelled
from sluice_worker.engines.decoder.network import CausalNetwork
from sluice_worker.engines.decoder.pages import PAGE_TOKENS
from sluice_worker.engines.decoder.sampling import Drawn, Sampler, Sampling
from sluice_worker.engines.decoder.sequence import Sequence
from sluice_worker.generation.loading import prove
from tests.support.accelerator import PLACES, Place
from tests.support.decoding import HandEngine, Heard
from tests.support.language_models import ARCHITECTURES, END, random_model

pytestmark = pytest.mark.gpu

LONGEST = 1024
STOPS = frozenset([END])


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with PLACES[request.param]() as place:
        yield place


class Telling(Heard):
    """Tells another thread when it has begun and when it is over, and holds the step up between."""

    def __init__(self, *, held: bool) -> None:
        super().__init__()
        self.begun, self.over, self.let_go = (threading.Event() for _ in range(3))
        if not held:
            self.let_go.set()

    def take(self, drawn: Drawn) -> FinishReason | None:
        self.begun.set()
        assert self.let_go.wait(120)
        return super().take(drawn)

    def finish(self, reason: FinishReason) -> None:
        super().finish(reason)
        self.over.set()

    def fail(self, error: Exception) -> None:
        super().fail(error)
        self.over.set()


def prompts(*lengths: int, seed: int = 9) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(2, 97) for _ in range(length)] for length in lengths]


def written(hand: HandEngine, asked: list[list[int]], tokens: int) -> list[list[int]]:
    """All of ``asked`` side by side."""
    sequences = [hand.submit(prompt, tokens, stop_ids=STOPS)[0] for prompt in asked]
    hand.finish()
    return [sequence.ids[sequence.prompt :] for sequence in sequences]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_alone_and_mixed_it_writes_what_generate_writes(architecture: str, place: Place) -> None:
    model = place.bring(random_model(architecture, positions=LONGEST))
    asked = prompts(1, 3, 17, 40, 300)  # The last one reaches into a second page.
    held = place.expect(model, asked, 20)
    network = CausalNetwork(model)
    prove(network, place.store(network), list(range(7, 79, 3)))
    hand = place.engine(network)
    held.check(network, written(hand, asked, 20))
    assert hand.engine.network.captures["captured"]
    assert "failed" not in hand.engine.network.captures
    held.check(network, [written(place.engine(network), [prompt], 20)[0] for prompt in asked])
    held.check(network, written(place.engine(network, guesses=True), asked, 20))


def test_graphs_are_captured_and_replayed(place: Place) -> None:
    model = place.bring(random_model("llama", positions=LONGEST))
    asked = prompts(5, 9, 250, 3, 20, 31, 7)
    held = place.expect(model, asked, 40)
    network = CausalNetwork(model)
    hand = place.engine(network)
    held.check(network, written(hand, asked, 40))
    assert hand.engine.network.captures["captured"] >= 1
    assert "failed" not in hand.engine.network.captures
    assert 8 in place.replayed, "seven rows, and one of nobody's"
    place.replayed.clear()
    # What was captured serves other texts, and fewer of them.
    again = prompts(11, 12, 13, seed=4)
    other = [written(hand, [prompt], 30)[0] for prompt in again]
    together = written(hand, again, 30)
    assert {1, 4} <= set(place.replayed)
    eager = place.engine(network, graphs_after=10**9)
    if place.exact:
        assert other == together == written(eager, again, 30)
    assert "failed" not in hand.engine.network.captures


def test_a_beginning_is_computed_once_and_never_for_another_tenant(place: Place) -> None:
    model = place.bring(random_model("llama", positions=LONGEST))
    [beginning, first, second] = prompts(PAGE_TOKENS, 9, 30)
    asked = [beginning + first, beginning + second]
    held = place.expect(model, asked, 12)
    network = CausalNetwork(model)
    hand = place.engine(network)
    one, _ = hand.submit(asked[0], 12, stop_ids=STOPS)
    hand.finish()
    two, _ = hand.submit(asked[1], 12, stop_ids=STOPS)
    hand.finish()
    foreign, _ = hand.submit(asked[1], 12, stop_ids=STOPS, salt=b"another")
    hand.finish()
    assert (one.cached, two.cached, foreign.cached) == (0, PAGE_TOKENS, 0)
    held.check(network, [one.ids[one.prompt :], two.ids[two.prompt :]])
    held.check(network, [one.ids[one.prompt :], foreign.ids[foreign.prompt :]])


def test_who_gave_way_writes_what_it_would_have_written(place: Place) -> None:
    model = place.bring(random_model("llama", positions=LONGEST))
    # Four texts that each grow into a second page, and room for five pages.
    asked = prompts(250, 251, 252, 253, seed=10)
    held = place.expect(model, asked, 24)
    network = CausalNetwork(model)
    hand = place.engine(network, pages=5, budget=1200)
    held.check(network, written(hand, asked, 24))
    assert hand.engine.scheduler.preemptions > 0
    assert hand.engine.store.used == 0


def test_who_is_cancelled_takes_part_in_no_later_step(place: Place) -> None:
    model = place.bring(random_model("llama", positions=LONGEST))
    [stays, goes] = prompts(20, 21)
    held = place.expect(model, [stays], 60)
    network = CausalNetwork(model)
    engine = place.engine(network).engine
    writing, staying = Telling(held=True), Telling(held=False)
    gone = Sequence(list(goes), 900, Sampler(), writing)
    other = Sequence(list(stays), 60, Sampler(), staying, stop_ids=STOPS)
    engine.start(place.prepare_thread)
    try:
        engine.submit(gone, other)
        assert writing.begun.wait(120)
        engine.cancel(gone)
        writing.let_go.set()
        assert writing.over.wait(120)
        assert staying.over.wait(120)
        assert isinstance(writing.error, Cancelled)
        assert len(writing.tokens) == 1, "of the step that was under way"
    finally:
        engine.stop()
    held.check(network, [other.ids[other.prompt :]])


def test_rules_and_seeds_are_kept_beside_neighbours(place: Place) -> None:
    network = CausalNetwork(place.bring(random_model("llama", positions=LONGEST)))
    [prompt, neighbour] = prompts(12, 30)
    rules = [
        Sampling(temperature=0.8, seed=3, top_p=0.9),
        Sampling(temperature=1.2, seed=4, top_k=5),
        Sampling(temperature=1.0, seed=5, min_p=0.05, presence=0.5, frequency=0.2, repetition=1.3),
        Sampling(bias={7: 100.0}, logprobs=3),
    ]
    hand = place.engine(network)
    texts = []
    for _ in range(2):
        asked = [hand.submit(prompt, 16, sampler=Sampler(rule)) for rule in rules]
        hand.submit(neighbour, 16)
        hand.finish()
        assert all(heard.reason == "length" for _, heard in asked)
        texts.append([heard.tokens for _, heard in asked])
        assert len(asked[3][1].drawn[0].top) == 3
    assert texts[0][3] == texts[1][3] == [7] * 16
    if place.exact:
        assert texts[0] == texts[1]
