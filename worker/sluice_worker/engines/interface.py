"""Our attention as transformers calls it: under a name that a model's configuration is set to.

A model's own code runs on one row of tokens, several texts without padding; what it calls for its
attention finds in the calling context where each text begins and ends. Both encoders
(``engines.adapter``) and the reading side of writers (``engines.seq2seq.reading``) are served so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from sluice_worker.engines.attention import attend
from sluice_worker.engines.packing import Packed
from sluice_worker.engines.without_compiler import without_compiler

with without_compiler():
    from transformers import AttentionInterface

ATTENTION = "sluice_packed"

_current: ContextVar[Packed | None] = ContextVar("packed batch", default=None)

_FOREIGN = ("softcap", "s_aux", "head_mask", "is_causal")
"""What an attention may be asked for beyond ours. Refused, so that the padded engine serves it."""


class NotPackable(Exception):
    """The architecture cannot run packed; the message says why."""


@contextmanager
def attending(batch: Packed) -> Iterator[None]:
    """Within it, models that are set to :data:`ATTENTION` read ``batch``."""
    token = _current.set(batch)
    try:
        yield
    finally:
        _current.reset(token)


def current_batch() -> Packed | None:
    """What is being read in this context."""
    return _current.get()


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """``[1, heads, T, size]`` each → ``[1, T, heads, size]``.

    ``position_bias`` is that of the longest text. Raises NotPackable for an attention that wants
    more than to look at its own text.
    """
    batch = _current.get()
    assert batch is not None, "only who told the batch calls the model"
    foreign = [name for name in _FOREIGN if others.get(name) not in (None, False)]
    if position_bias is not None and (
        sliding_window is not None or position_bias.shape[-1] != batch.groups[-1].length
    ):
        foreign.append("position_bias")
    if attention_mask is not None or foreign or getattr(module, "is_causal", False):
        raise NotPackable(f"its attention asks for {', '.join(foreign) or 'a mask'}")
    output = attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        batch,
        scale=scaling,
        window=sliding_window,
        bias=position_bias,
    )
    return output.unsqueeze(0), None


# Under no name of a mask: then transformers makes none, and looks for nothing that one would need.
AttentionInterface.register(ATTENTION, _packed_attention)
