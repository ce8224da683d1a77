"""Any encoder of transformers, fed with packed batches through its attention interface.

transformers lets a model's attention be replaced by name. Ours (``engines.interface``) attends
inside each text, so the model's own code computes everything else on one row of tokens without
padding. Whether that is right for an architecture is not assumed but measured when it is loaded
(``engines.selection``).
"""

import copy
import inspect
from typing import Any

from torch import Tensor, nn

from sluice_worker.engines.interface import ATTENTION, NotPackable, attending
from sluice_worker.engines.packing import Packed
from sluice_worker.engines.reading import logits_of
from sluice_worker.engines.without_compiler import without_compiler

with without_compiler():
    from transformers.modeling_outputs import BaseModelOutputWithPooling


class AdaptedNetwork:
    """Implements :class:`sluice_worker.engines.network.Network`.

    Args:
        model: from here on it must be called through this object alone, because its attention
            is switched for good.
        offset: the first position id of a text.

    Raises:
        NotPackable: the model's code has no place for our attention or for positions.
    """

    def __init__(self, model: Any, *, offset: int) -> None:
        if not getattr(model, "_supports_attention_backend", False):
            raise NotPackable("its attention cannot be replaced")
        self._base = model.base_model
        self._takes = inspect.signature(self._base.forward).parameters
        if "position_ids" not in self._takes:
            raise NotPackable("it takes no position_ids")
        self._offset = offset
        self._head = _head_alone(model) if self._base is not model else None
        model.set_attn_implementation(ATTENTION)

    def __repr__(self) -> str:
        return f"<AdaptedNetwork {type(self._base).__name__}>"

    def hidden(self, batch: Packed) -> Tensor:
        arguments = {"input_ids": batch.ids, "position_ids": batch.positions + self._offset}
        if batch.type_ids is not None and "token_type_ids" in self._takes:
            arguments["token_type_ids"] = batch.type_ids
        with attending(batch):
            output = self._base(**{name: rows.unsqueeze(0) for name, rows in arguments.items()})
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def first(self, batch: Packed) -> Tensor:
        return self.hidden(batch)[batch.starts]

    def logits(self, rows: Tensor) -> Tensor:
        assert self._head is not None, "a model without a head is never asked for logits"
        output = self._head(inputs_embeds=rows.unsqueeze(1))
        return logits_of(output).flatten(1)


class _GivenStates(nn.Module):
    """Stands where the encoder was: hands on what it is given as its last hidden state."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.pooler = getattr(encoder, "pooler", None)

    def forward(self, *ignored: Any, inputs_embeds: Tensor, **unused: Any) -> Any:
        pooled = self.pooler(inputs_embeds) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


def _head_alone(model: Any) -> Any:
    """The model's own code for its head, on texts that consist of one token each."""
    head = copy.copy(model)
    head._modules = dict(model._modules)
    head._modules[model.base_model_prefix] = _GivenStates(model.base_model)
    return head
