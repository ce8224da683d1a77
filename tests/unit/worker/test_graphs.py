"""Steps replayed from fixed tensors say what eager ones say, and whatever fails falls back.

A CPU has no graphs; in their place the same computation is run anew from the same fixed tensors,
which proves the tensors and what fills them up. ``tests/gpu`` captures for real.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sluice_worker.cost import CostModel
from sluice_worker.engines.decoder.engine import DecoderEngine
from sluice_worker.engines.decoder.graphs import GraphedNetwork, Replay
from sluice_worker.engines.decoder.network import CausalNetwork
from sluice_worker.engines.decoder.pages import NOBODYS, PagedStore
from tests.support.decoding import LENGTH, HandEngine, paged_store
from tests.support.language_models import ARCHITECTURES, END, greedy, random_model

PROMPTS = [[5], [7, 8, 9], [30, 31, 32, 33, 34, 35, 36, 37, 38], [11, 12, 13, 14], [50] * 17]


class Captures:
    """Stands in for the device: keeps what was captured, and counts each replay's rows."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda logits: logits) -> None:
        self.captured = 0
        self.replayed: list[int] = []
        self.change = change
        """What the device makes of the right logits."""

    def __call__(self, compute: Replay) -> Replay:
        self.captured += 1
        # As a graph does, it always answers with the same tensor.
        answer = compute().clone()

        def replay() -> Tensor:
            answer.copy_(self.change(compute()))
            self.replayed.append(len(answer))
            return answer

        return replay


@pytest.fixture(scope="module")
def network() -> CausalNetwork:
    return CausalNetwork(random_model("llama"))


class Bench:
    """A hand-driven engine whose steps are captured when a size comes up for the second time."""

    def __init__(
        self,
        network: CausalNetwork,
        capture: Captures | None = None,
        *,
        longest: int = LENGTH,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self.captures = capture or Captures()
        store = paged_store(network, room=400)
        self.store: PagedStore = store
        self.network = GraphedNetwork(
            network, store, longest=longest, capture=self.captures, has_room=has_room,
            tolerance=1e-4, sizes=(1, 2, 4), uses=2,
        )  # fmt: skip
        self.hand = HandEngine(network, store, running=8)
        self.hand.engine = DecoderEngine(
            self.network, store, most_running=8, cost=CostModel(), goal_seconds=1, guesses=False
        )
        self.hand.engine._budget = lambda: 64  # type: ignore[method-assign]

    def write(self, prompts: list[list[int]], tokens: int = 14) -> list[list[int]]:
        asked = [self.hand.submit(p, tokens, stop_ids=frozenset([END]))[0] for p in prompts]
        self.hand.finish()
        return [sequence.ids[sequence.prompt :] for sequence in asked]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_replayed_steps_write_what_generate_writes(architecture: str) -> None:
    model = random_model(architecture)
    expected = [greedy(model, prompt, 14) for prompt in PROMPTS]
    bench = Bench(CausalNetwork(model))
    # Alone, and three side by side, which one row of nobody's fills up to four.
    assert bench.write(PROMPTS[:1]) == expected[:1]
    assert bench.write(PROMPTS[:3]) == expected[:3]
    assert bench.write(PROMPTS[2:]) == expected[2:]
    assert {1, 4} <= set(bench.captures.replayed)
    assert bench.network.captures == {"captured": bench.captures.captured}


def test_what_fills_a_step_up_touches_nobodys_page_alone(network: CausalNetwork) -> None:
    bench = Bench(network)
    store, layers = bench.store, bench.store.layers.values()
    idle = store.open([3] * 8, b"")  # Takes part in no step, and has the pool's first pages.
    assert idle is not None
    pages, [nobodys] = store.tables[idle.place], store.tables[NOBODYS]
    assert 0 in pages
    for layer in layers:
        layer.keys[pages] = 7.0
    bench.write(PROMPTS[:3], tokens=8)
    assert 4 in bench.captures.replayed
    for layer in layers:
        assert (layer.keys[pages] == 7.0).all()
        assert layer.keys[nobodys, 0].any()
        assert not layer.keys[nobodys, 1:].any()


def test_a_size_is_captured_when_it_comes_up_often(network: CausalNetwork) -> None:
    bench = Bench(network)
    bench.write([[5, 6, 7]], tokens=3)  # One step reads the prompt, and counts: it is one row.
    first = bench.captures.captured
    assert first == 1
    bench.write([[5, 6, 8]], tokens=6)
    assert bench.captures.captured == 1, "once is enough"
    assert len(bench.captures.replayed) > 5


def test_prompts_and_too_many_rows_run_eagerly(network: CausalNetwork) -> None:
    bench = Bench(network)
    bench.write([[n, n + 1, n + 2] for n in range(5, 11)], tokens=5)  # Six rows; graphs have four.
    assert bench.captures.captured == 0


def test_a_text_that_outgrows_the_tables_runs_eagerly(network: CausalNetwork) -> None:
    expected = greedy(random_model("llama"), [5, 6, 7], 30)
    bench = Bench(network, longest=16)
    assert bench.write([[5, 6, 7]], tokens=30) == [expected]
    assert 0 < len(bench.captures.replayed) <= 14


def refuse(compute: Replay) -> Replay:
    raise RuntimeError("operation not permitted when stream is capturing")


def test_a_failed_capture_is_the_last(network: CausalNetwork, caplog: Any) -> None:
    expected = Bench(network).write(PROMPTS[:3])
    bench = Bench(network, refuse)  # type: ignore[arg-type]
    assert bench.write(PROMPTS[:3]) == expected
    assert bench.network.captures == {"failed": 1}
    assert "given up" in repr(bench.network)
    assert [r.getMessage() for r in caplog.records] == [
        "a step cannot be captured; all run eagerly from now on"
    ]


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x * torch.nan], ids=["more", "nan"])
def test_a_graph_that_says_something_else_is_not_used(
    network: CausalNetwork, change: Callable[[Tensor], Tensor], caplog: Any
) -> None:
    expected = Bench(network).write(PROMPTS[:3])
    bench = Bench(network, Captures(change))
    assert bench.write(PROMPTS[:3]) == expected
    assert bench.network.captures == {"failed": 1}
    assert len(bench.captures.replayed) == 1, "for the comparison only"
    assert "differs" in caplog.text


def test_a_replay_that_fails_is_computed_eagerly(network: CausalNetwork, caplog: Any) -> None:
    expected = Bench(network).write(PROMPTS[:3])

    def break_later(logits: Tensor) -> Tensor:
        if len(captures.replayed) > 3:
            raise RuntimeError("an illegal memory access was encountered")
        return logits

    captures = Captures(break_later)
    bench = Bench(network, captures)
    assert bench.write(PROMPTS[:3]) == expected
    assert bench.network.captures["failed"] == 1
    assert "a captured step failed" in caplog.text


def test_without_memory_nothing_is_captured(network: CausalNetwork) -> None:
    expected = Bench(network).write(PROMPTS[:1])
    bench = Bench(network, has_room=lambda: False)
    assert bench.write(PROMPTS[:1]) == expected
    assert bench.captures.captured == 0
    assert bench.network.captures == {"no_room": 1}
