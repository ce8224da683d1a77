"""A decoder engine driven by hand, and a stand-in for the kernel that only accelerators have."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sluice_api.shapes.generation import FinishReason
from sluice_worker.cost import CostModel
from sluice_worker.engines.decoder.engine import DecoderEngine
from sluice_worker.engines.decoder.network import CausalNetwork
from sluice_worker.engines.decoder.pages import PagedStore
from sluice_worker.engines.decoder.sampling import Drawn, Sampler
from sluice_worker.engines.decoder.sequence import Sequence as Decoded
from sluice_worker.engines.decoder.slots import SlotStore
from sluice_worker.engines.decoder.store import Store

LENGTH = 64


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.drawn: list[Drawn] = []
        self.reason: FinishReason | None = None
        self.error: Exception | None = None

    def take(self, drawn: Drawn) -> FinishReason | None:
        self.tokens.append(drawn.token)
        self.drawn.append(drawn)
        return None

    def finish(self, reason: FinishReason) -> None:
        assert self.reason is None
        assert self.error is None
        self.reason = reason

    def fail(self, error: Exception) -> None:
        assert self.reason is None
        self.error = error


def varlen_by_hand(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bounds: Tensor,
    _: None,
    longest_query: int,
    longest: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
) -> Tensor:
    """What ``torch.nn.attention.varlen.varlen_attn`` says it does, sequence by sequence."""
    assert num_splits == 1
    answers = []
    for number, end in enumerate(seqused_k.tolist()):
        begin, stop = bounds[number].item(), bounds[number + 1].item()
        count = int(stop - begin)
        assert count <= longest_query
        assert end <= longest
        pages = block_table[number].long()
        asked = torch.arange(end - count, end)[:, None]
        places = torch.arange(end)[None]
        seen = places <= asked
        if window_size[0] >= 0:
            seen &= places >= asked - window_size[0]
        answer = scaled_dot_product_attention(
            query[int(begin) : int(stop)].transpose(0, 1)[None],
            keys[pages].flatten(0, 1)[:end].transpose(0, 1)[None],
            values[pages].flatten(0, 1)[:end].transpose(0, 1)[None],
            attn_mask=seen,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        answers.append(answer[0].transpose(0, 1))
    return torch.cat(answers)


def slot_store(network: CausalNetwork, *, room: int, slots: int = 4) -> SlotStore:
    return SlotStore(network.shapes(), slots=slots, length=LENGTH, room=room)


def paged_store(network: CausalNetwork, *, room: int, slots: int = 4) -> PagedStore:
    return PagedStore(
        network.shapes(),
        room=room,
        dtype=torch.float32,
        device=torch.device("cpu"),
        page_tokens=8,
        attend=varlen_by_hand,
    )


STORES: dict[str, Callable[..., Store]] = {"slots": slot_store, "pages": paged_store}


class HandEngine:
    """An engine without a thread: a step is computed when the test says so."""

    def __init__(
        self, network: CausalNetwork, store: Store, *, budget: int = 24, running: int = 4
    ) -> None:
        self.engine = DecoderEngine(
            network, store, most_running=running, cost=CostModel(), goal_seconds=1.0
        )
        self.budget = budget
        self.engine._budget = lambda: self.budget  # type: ignore[method-assign]

    def submit(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        sampler: Sampler | None = None,
        **more: Any,
    ) -> tuple[Decoded, Heard]:
        heard = Heard()
        sequence = Decoded(list(prompt), max_tokens, sampler or Sampler(), heard, **more)
        self.engine.scheduler.add(sequence)
        return sequence, heard

    @property
    def busy(self) -> bool:
        return bool(self.engine.scheduler.running or self.engine.scheduler.waiting)

    def step(self) -> None:
        self.engine.advance()

    def finish(self, *, most_steps: int = 2000) -> None:
        for _ in range(most_steps):
            if not self.busy:
                return
            self.step()
        raise AssertionError(f"no end in sight: {self.engine!r}")
