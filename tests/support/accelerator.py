"""Where the tests of a GPU compute: on one, and on one that is pretended.

Both run the same tests, so that they stay honest where there is no GPU. On one, generated texts
come from numbers of 16 bits, and where two tokens are as good as each other either may be written.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from sluice_worker.cost import CostModel
from sluice_worker.engines.decoder.engine import DecoderEngine
from sluice_worker.engines.decoder.graphs import GraphedNetwork, Replay, capture_cuda, cuda_has_room
from sluice_worker.engines.decoder.network import CausalNetwork
from sluice_worker.engines.decoder.pages import PAGE_TOKENS, PagedStore
from tests.support.decoding import HandEngine
from tests.support.language_models import greedy
from tests.support.pretended_gpu import GPU, capture_anew, pretended_gpu

REQUIRED = "SLUICE_TEST_GPU_REQUIRED"

_TOLERANCE = {torch.float16: 5e-2, torch.bfloat16: 1e-1}


def need_gpu() -> None:
    """Skip the test where there is no GPU; `make test-gpu` demands one."""
    if not torch.cuda.is_available():
        complain = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
        complain("torch sees no NVIDIA GPU; `make test-gpu` runs this on a machine with one")


@dataclass
class Place:
    """A device, and what a model and its engine are there.

    Attributes:
        prepare_thread: what every further thread that computes must call first.
        replayed: rows of each step that came from a graph.
    """

    device: torch.device
    dtype: torch.dtype
    capture: Callable[[Replay], Replay]
    has_room: Callable[[], bool]
    prepare_thread: Callable[[], None] = lambda: None
    replayed: list[int] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return self.dtype == torch.float32

    def bring(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self.device, self.dtype)

    def store(self, network: CausalNetwork, *, pages: int = 16) -> PagedStore:
        room = pages * PAGE_TOKENS
        return PagedStore(network.shapes(), room=room, dtype=self.dtype, device=self.device)

    def engine(
        self,
        network: CausalNetwork,
        *,
        pages: int = 16,
        graphs_after: int = 2,
        guesses: bool = False,
        budget: int = 64,
        running: int = 8,
    ) -> HandEngine:
        """An engine driven by hand.

        Args:
            graphs_after: steps of a size until it is captured.
        """
        store = self.store(network, pages=pages)
        graphed = GraphedNetwork(
            network, store, longest=store.room, capture=self._counted, has_room=self.has_room,
            tolerance=_TOLERANCE.get(self.dtype, 1e-4), uses=graphs_after,
        )  # fmt: skip
        hand = HandEngine(network, store, budget=budget, running=running)
        hand.engine = DecoderEngine(
            graphed,
            store,
            most_running=running,
            cost=CostModel(),
            goal_seconds=1.0,
            guesses=guesses,
        )
        hand.engine._budget = lambda: hand.budget  # type: ignore[method-assign]
        return hand

    def expect(self, model: torch.nn.Module, prompts: Sequence[list[int]], tokens: int) -> "Held":
        """What ``generate`` writes after each of ``prompts``, before an engine has the model."""
        return Held(self, list(prompts), [greedy(model, prompt, tokens) for prompt in prompts])

    def _counted(self, compute: Replay) -> Replay:
        replay = self.capture(compute)

        def counted() -> torch.Tensor:
            answer = replay()
            self.replayed.append(len(answer))
            return answer

        return counted


@dataclass(frozen=True)
class Held:
    """What was written is held against ``generate``."""

    place: Place
    prompts: list[list[int]]
    expected: list[list[int]]

    def check(self, network: CausalNetwork, texts: Sequence[list[int]]) -> None:
        """``texts`` are what was written after each prompt, an end token included.

        On a GPU each token must be the model's own choice for that text, or as good as it is in 16
        bits; some texts at least must be the very ones.
        """
        if self.place.exact:
            assert list(texts) == self.expected
            return
        for prompt, written in zip(self.prompts, texts, strict=True):
            assert written
            logits = network.reference(prompt + written)[len(prompt) - 1 : -1].float()
            chosen = logits.gather(1, torch.tensor(written, device=logits.device)[:, None])[:, 0]
            missing = (logits.max(-1).values - chosen) / logits.abs().max().clamp(min=1.0)
            assert float(missing.max()) <= _TOLERANCE[self.place.dtype]
        assert any(left == right for left, right in zip(texts, self.expected, strict=True))


@contextmanager
def pretended() -> Iterator[Place]:
    with pretended_gpu() as prepare_thread:
        yield Place(GPU, torch.float32, capture_anew, lambda: True, prepare_thread)


@contextmanager
def gpu(dtype: torch.dtype) -> Iterator[Place]:
    need_gpu()
    yield Place(torch.device("cuda"), dtype, capture_cuda, cuda_has_room)


PLACES: dict[str, Callable[[], AbstractContextManager[Place]]] = {
    "pretended": pretended,
    "float16": lambda: gpu(torch.float16),
    "bfloat16": lambda: gpu(torch.bfloat16),
}
