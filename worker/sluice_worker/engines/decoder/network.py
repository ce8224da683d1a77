"""A causal language model of transformers, run one packed step at a time.

Whether the replaced attention is right for an architecture is not assumed: when the model is loaded
a text is computed both ways (``generation.loading``).
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sluice_worker.engines.decoder import attention
from sluice_worker.engines.decoder.attention import (
    ATTENTION,
    LayerShape,
    NotServed,
    Probe,
    StepAttention,
)
from sluice_worker.engines.decoder.store import Row, Store
from sluice_worker.engines.wide_head import WideHead

_PLAIN_LAYERS = ("full_attention", "sliding_attention")


class StepNetwork(Protocol):
    """What the engine needs of a network."""

    @property
    def captures(self) -> Mapping[str, int]:
        """How often a whole step was captured for replay, by outcome: for whoever counts."""
        ...

    def step(self, store: Store, rows: Sequence[Row], ids: list[int], wanted: list[int]) -> Tensor:
        """Compute the tokens of ``rows``, and the logits at the positions ``wanted`` of ``ids``.

        Returns:
            ``[wanted, vocabulary]``, to be read before the next step.
        """
        ...


class CausalNetwork:
    """From here on the model must be called through this object alone.

    Raises:
        NotServed: its code has no place for our attention, or positions, or keeps a state that is
            no keys and values.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        if not getattr(model, "_supports_attention_backend", False):
            raise NotServed("its attention cannot be replaced")
        strange = set(getattr(config, "layer_types", None) or ()).difference(_PLAIN_LAYERS)
        if strange:
            raise NotServed(f"it has layers of the type {', '.join(sorted(strange))}")
        takes = inspect.signature(model.forward).parameters
        if "position_ids" not in takes or "logits_to_keep" not in takes:
            raise NotServed("it takes no position_ids or no logits_to_keep")
        self.model = model
        self.device: torch.device = model.device
        self.vocabulary = int(config.vocab_size)
        self.captures: Mapping[str, int] = {}
        self._usual_attention = model.config._attn_implementation
        model.set_attn_implementation(ATTENTION)
        head = model.get_output_embeddings()
        if self.device.type == "cpu" and type(head) is nn.Linear:
            model.set_output_embeddings(WideHead(head))

    def __repr__(self) -> str:
        return f"<CausalNetwork {type(self.model).__name__} on {self.device}>"

    def shapes(self) -> dict[int, LayerShape]:
        """What each layer stores of a token. Raises NotServed."""
        probe = Probe()
        try:
            self._forward([0, 0], [0, 1], [1], probe)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            # Code we do not know, called in a way its authors may not have meant.
            raise NotServed(f"{type(error).__name__}: {error}") from error
        return probe.shapes

    def step(self, store: Store, rows: Sequence[Row], ids: list[int], wanted: list[int]) -> Tensor:
        """As :meth:`StepNetwork.step`."""
        positions = [position for row in rows for position in row.positions]
        return self._forward(ids, positions, wanted, store.step(rows))

    def reference(self, ids: list[int]) -> Tensor:
        """The logits after each of ``ids`` with the model's own attention, ``[T, vocabulary]``."""
        self.model.set_attn_implementation(self._usual_attention)
        try:
            with torch.inference_mode():
                output = self.model(
                    input_ids=torch.tensor([ids], device=self.device), use_cache=False
                )
        finally:
            self.model.set_attn_implementation(ATTENTION)
        logits: Tensor = output.logits[0]
        return logits

    def _forward(
        self, ids: list[int], positions: list[int], wanted: list[int], step: StepAttention
    ) -> Tensor:
        def row(values: list[int]) -> Tensor:
            return torch.tensor(values, device=self.device)

        return self.forward(row(ids)[None], row(positions)[None], row(wanted), step)

    def forward(
        self, ids: Tensor, positions: Tensor, wanted: Tensor, step: StepAttention
    ) -> Tensor:
        """``[1, T]`` ids and positions in, logits ``[wanted, vocabulary]`` out."""
        token = attention.current.set(step)
        try:
            with torch.inference_mode():
                output = self.model(
                    input_ids=ids, position_ids=positions, logits_to_keep=wanted, use_cache=False
                )
        finally:
            attention.current.reset(token)
        logits: Tensor = output.logits[0]
        return logits
