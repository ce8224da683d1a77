"""Where the attention of a transformers model is replaced by a store's.

transformers looks a model's attention up by name. Ours reads from the calling context what the step
is, writes the new keys and values to the store and attends to all of each sequence's. The model's
own code does the rest, on one row of tokens that belong to many sequences.
"""

from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sluice_worker.engines.without_compiler import without_compiler

with without_compiler():
    from transformers import AttentionInterface

ATTENTION = "sluice_decoder"

_FOREIGN = ("softcap", "s_aux", "position_bias", "head_mask")
"""What an attention may be asked for beyond ours."""


class NotServed(Exception):
    """This engine cannot compute the architecture; the message says what is in the way."""


class LayerShape(NamedTuple):
    """What one layer stores of a token: ``[heads, key_size]`` and ``[heads, value_size]``."""

    heads: int
    key_size: int
    value_size: int


class Look(NamedTuple):
    """How a layer looks back: the factor of its scores (None: the usual), and how far (all)."""

    scale: float | None
    window: int | None


class StepAttention(Protocol):
    """The attention of one step, in every layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        """``[T, heads, size]`` each → ``[T, heads, value_size]``."""
        ...


class Probe:
    """A step that attends to nothing and notes what a store must hold."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[2], value.shape[2])
        return query.new_zeros(query.shape[0], query.shape[1], value.shape[2])


current: ContextVar[StepAttention] = ContextVar("attention of the step")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """``[1, heads, T, size]`` each → ``[1, T, heads, size]``. Raises NotServed."""
    foreign = [name for name in _FOREIGN if others.get(name) is not None]
    if foreign or attention_mask is not None:
        raise NotServed(f"its attention asks for {', '.join(foreign) or 'a mask of its own'}")
    if query.shape[2] != key.shape[2] or not getattr(module, "is_causal", True):
        raise NotServed("its attention looks at more than what stands before")
    output = current.get().attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        Look(scaling, sliding_window),
    )
    return output.unsqueeze(0), None


# Under no name of a mask: then transformers makes none, and looks for nothing that one would need.
AttentionInterface.register(ATTENTION, _attend)
