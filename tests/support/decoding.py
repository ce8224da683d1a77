"""A decoder engine driven by hand, and a stand-in for the kernel that only accelerators have.

Importing this gives torch's ``_flash_attention_forward`` a kernel for the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sluice_api.shapes.generated import FinishReason
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


def _flash_by_hand(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bounds: Tensor | None,
    reaches: Tensor | None,
    longest_query: int,
    longest: int,
    dropout: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, ...]:
    """Attention sequence by sequence, packed or in pages. What the kernel refuses is refused here
    as well: see ``mha_varlen_fwd`` of torch's ``flash_api.cpp``; only its 16 bits and its pages'
    size are free.
    """
    assert bounds is not None
    assert reaches is not None, "the kernel wants both or none"
    assert num_splits == 1
    assert is_causal == ((window_size_left, window_size_right) == (-1, 0))
    ends = reaches.diff().tolist()
    count = len(ends)
    for tensor in (bounds, reaches):
        assert tensor.dtype == torch.int32
        assert tensor.shape == (count + 1,)
        assert tensor.is_contiguous()
    assert query.shape[1] % keys.shape[-2] == 0
    assert keys.shape[:-1] == values.shape[:-1]
    assert all(tensor.stride(-1) == 1 for tensor in (query, keys, values))
    if block_table is None:
        assert keys.shape[0] == int(reaches[-1])
        places = [
            slice(int(end) - length, int(end))
            for end, length in zip(reaches[1:], ends, strict=True)
        ]
    else:
        assert block_table.dtype == torch.int32
        assert block_table.shape[0] == count
        assert block_table.stride(-1) == 1
        assert seqused_k is not None
        assert seqused_k.dtype == torch.int32
        assert seqused_k.tolist() == ends
        size = keys.shape[1]
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        within = torch.arange(size)
        tables = [(table.long()[:, None] * size + within).flatten() for table in block_table]
        places = [table[:end] for table, end in zip(tables, ends, strict=True)]
    answers = []
    for number, (end, place) in enumerate(zip(ends, places, strict=True)):
        begin, stop = int(bounds[number]), int(bounds[number + 1])
        assert stop - begin <= longest_query
        assert end <= longest
        ahead = torch.arange(end)[None] - torch.arange(end - (stop - begin), end)[:, None]
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if window_size_left is not None and window_size_left >= 0:
            seen &= ahead >= -window_size_left
        if window_size_right is not None and window_size_right >= 0:
            seen &= ahead <= window_size_right
        answer = scaled_dot_product_attention(
            query[begin:stop].transpose(0, 1)[None],
            keys[place].transpose(0, 1)[None],
            values[place].transpose(0, 1)[None],
            attn_mask=seen,
            scale=scale,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        answers.append(answer[0].transpose(0, 1))
    none = query.new_empty(0)
    return torch.cat(answers), none, none, none, none


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_noted: list[list[Arguments]] = []


def _flash(*positional: Any, **named: Any) -> tuple[Tensor, ...]:
    for calls in _noted:
        calls.append((positional, named))
    return _flash_by_hand(*positional, **named)


# Below torch's own ``varlen_attn``, whose signature and checks are then the real ones.
_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl("_flash_attention_forward", _flash, "CPU")


@contextmanager
def flash_calls() -> Iterator[list[Arguments]]:
    """What the kernel is called with inside this context."""
    calls: list[Arguments] = []
    _noted.append(calls)
    try:
        yield calls
    finally:
        _noted.remove(calls)


def slot_store(network: CausalNetwork, *, room: int, slots: int = 4) -> SlotStore:
    return SlotStore(network.shapes(), slots=slots, length=LENGTH, room=room)


def paged_store(network: CausalNetwork, *, room: int, slots: int = 4) -> PagedStore:
    return PagedStore(
        network.shapes(),
        room=room,
        dtype=torch.float32,
        device=torch.device("cpu"),
        page_tokens=8,
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
