"""The two engines for encoders: packed, and padded for what cannot be packed.

Both take a batch of any lengths from the loop, on the lane's own thread, and give one array per
text. ``engines.selection`` decides which one a model gets.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sluice_worker.engines.base import Array, Unit
from sluice_worker.engines.network import Network
from sluice_worker.engines.packing import Packed, pack
from sluice_worker.engines.pooling import pool, unit_length
from sluice_worker.models.description import Pooling

_FREE_PADDING_TOKENS = 32
"""So little padding costs less than another forward pass would."""
_PADDING_SHARE = 1 / 8


class PackedEngine:
    """Implements :class:`sluice_worker.engines.base.Engine` without padding.

    Args:
        pooling: how sentence vectors are made; None for a classifier, which gives logits.
    """

    name = "packed"

    def __init__(self, network: Network, pooling: Pooling | None, device: torch.device) -> None:
        self._network = network
        self._pooling = pooling
        self._device = device

    def __repr__(self) -> str:
        return f"<PackedEngine {self._network!r} on {self._device}>"

    @torch.inference_mode()
    def run(self, units: Sequence[Unit]) -> list[Array]:
        batch = pack(units, self._device)
        return _in_order(self._read(batch), batch.order)

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        return sum(lengths)

    def _read(self, batch: Packed) -> Tensor:
        if self._pooling is None:
            return self._network.logits(self._network.first(batch))
        if self._pooling.mode == "cls":
            first = self._network.first(batch)
            return unit_length(first) if self._pooling.normalize else first
        hidden = self._network.hidden(batch)
        return pool(hidden, batch, self._pooling.mode, normalize=self._pooling.normalize)


class PaddedEngine:
    """Implements :class:`sluice_worker.engines.base.Engine` by batches of similar lengths.

    Args:
        model: a transformers model: a bare encoder where ``pooling`` is given, or else one with a
            sequence classification head.
        padding: False batches texts of equal length only, for models that padding changes.
    """

    name = "padded"

    def __init__(
        self, model: Any, pooling: Pooling | None, device: torch.device, *, padding: bool = True
    ) -> None:
        self._model = model
        self._padding = padding
        self._pooling = pooling
        self._device = device
        self._pad_id = model.config.pad_token_id or 0
        self._takes_types = "token_type_ids" in inspect.signature(model.forward).parameters

    def __repr__(self) -> str:
        return f"<PaddedEngine {type(self._model).__name__} on {self._device}>"

    @torch.inference_mode()
    def run(self, units: Sequence[Unit]) -> list[Array]:
        answers: dict[int, Array] = {}
        for bucket in buckets([unit.tokens for unit in units], padding=self._padding):
            rows = self._forward([units[index] for index in bucket])
            answers.update(zip(bucket, _in_order(rows, range(len(bucket))), strict=True))
        return [answers[index] for index in range(len(units))]

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        return sum(
            len(bucket) * max(lengths[index] for index in bucket)
            for bucket in buckets(lengths, padding=self._padding)
        )

    def _forward(self, units: list[Unit]) -> Tensor:
        batch = pack(units, self._device)  # The bucket is sorted, so this keeps its order.
        width = units[-1].tokens
        mask = torch.zeros((len(units), width), dtype=torch.bool, device=self._device)
        for group in batch.groups:
            mask[group.texts, : group.length] = True
        arguments = {
            "input_ids": _spread(batch.ids, mask, self._pad_id),
            "attention_mask": mask.long(),
        }
        if batch.type_ids is not None and self._takes_types:
            arguments["token_type_ids"] = _spread(batch.type_ids, mask, 0)
        output = self._model(**arguments)
        if self._pooling is None:
            logits: Tensor = output.logits
            return logits
        hidden: Tensor = output.last_hidden_state[mask]
        return pool(hidden, batch, self._pooling.mode, normalize=self._pooling.normalize)


def buckets(lengths: Sequence[int], *, padding: bool = True) -> list[list[int]]:
    """Indices of ``lengths``, shortest first, cut where padding would begin to cost.

    A text joins the bucket before it while that adds at most an eighth of padding, or none at all
    where ``padding`` is not allowed.
    """
    result: list[list[int]] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        length = lengths[index]
        real += length
        added = (len(result[-1]) + 1) * length - real if result else 0
        allowed = max(_FREE_PADDING_TOKENS, real * _PADDING_SHARE) if padding else 0
        if not result or added > allowed:
            result.append([])
            real = length
        result[-1].append(index)
    return result


def _spread(rows: Tensor, mask: Tensor, fill: int) -> Tensor:
    """Packed rows ``[T]`` to ``[N, width]``, ``fill`` where the mask is False."""
    spread = torch.full(mask.shape, fill, dtype=rows.dtype, device=rows.device)
    spread[mask] = rows
    return spread


def _in_order(rows: Tensor, order: Sequence[int]) -> list[Array]:
    """Rows ``[N, …]`` as float32 arrays; ``order[i]`` is where row i goes."""
    arrays = rows.float().cpu().numpy()
    answers: list[Array] = [arrays[0]] * len(order)
    for row, place in enumerate(order):
        answers[place] = arrays[row]
    return answers
