"""The two engines for encoders: packed, and padded for what cannot be packed.

Both take a batch of any lengths from the loop, on the lane's own thread, and give one array per
text. ``engines.selection`` decides which one a model gets.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sluice_worker.engines.base import Array, Unit
from sluice_worker.engines.network import Network
from sluice_worker.engines.packing import pack
from sluice_worker.engines.reading import Reading, Rows

_FREE_PADDING_TOKENS = 32
"""So little padding costs less than another forward pass would."""
_PADDING_SHARE = 1 / 8


class PackedEngine:
    """Implements :class:`sluice_worker.engines.base.Engine` without padding."""

    name = "packed"
    stepwise = False

    def __init__(self, network: Network, reading: Reading, device: torch.device) -> None:
        self._network = network
        self._reading = reading
        self._device = device

    def __repr__(self) -> str:
        return f"<PackedEngine {self._network!r} on {self._device}>"

    @torch.inference_mode()
    def run(self, units: Sequence[Unit]) -> list[Array]:
        batch = pack(units, self._device)
        return _in_order(self._reading.packed(self._network, batch), batch.order)

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        return sum(lengths)


class PaddedEngine:
    """Implements :class:`sluice_worker.engines.base.Engine` by batches of similar lengths.

    Args:
        model: a transformers model with the head that ``reading`` reads.
        padding: False batches texts of equal length only, for models that padding changes.
        most: texts of one batch; None for any number.
    """

    name = "padded"
    stepwise = False

    def __init__(
        self,
        model: Any,
        reading: Reading,
        device: torch.device,
        *,
        padding: bool = True,
        most: int | None = None,
    ) -> None:
        self._model = model
        self._padding = padding
        self._most = most
        self._reading = reading
        self._device = device
        self._pad_id = model.config.pad_token_id or 0
        self._takes_types = "token_type_ids" in inspect.signature(model.forward).parameters

    def __repr__(self) -> str:
        return f"<PaddedEngine {type(self._model).__name__} on {self._device}>"

    @torch.inference_mode()
    def run(self, units: Sequence[Unit]) -> list[Array]:
        answers: dict[int, Array] = {}
        for bucket in self._buckets([unit.tokens for unit in units]):
            answers.update(zip(bucket, self._answers([units[i] for i in bucket]), strict=True))
        return [answers[index] for index in range(len(units))]

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        return sum(
            len(bucket) * max(lengths[index] for index in bucket)
            for bucket in self._buckets(lengths)
        )

    def _buckets(self, lengths: Sequence[int]) -> list[list[int]]:
        return buckets(lengths, padding=self._padding, most=self._most)

    def _answers(self, units: list[Unit]) -> list[Array]:
        try:
            return _in_order(self._forward(units), range(len(units)))
        except ValueError:
            # Of a model that wants something of all texts of a batch alike, such as the number of
            # end tokens: who writes one into a text must not fail who stands beside.
            if len(units) == 1:
                raise
            return [answer for unit in units for answer in self._answers([unit])]

    def _forward(self, units: list[Unit]) -> Rows:
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
        return self._reading.padded(self._model(**arguments), mask, batch)


def buckets(
    lengths: Sequence[int], *, padding: bool = True, most: int | None = None
) -> list[list[int]]:
    """Indices of ``lengths``, shortest first, cut where padding would begin to cost.

    A text joins the bucket before it while that adds at most an eighth of padding, or none at all
    where ``padding`` is not allowed, and while the bucket has less than ``most`` texts.
    """
    result: list[list[int]] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        length = lengths[index]
        real += length
        added = (len(result[-1]) + 1) * length - real if result else 0
        allowed = max(_FREE_PADDING_TOKENS, real * _PADDING_SHARE) if padding else 0
        if not result or added > allowed or len(result[-1]) == most:
            result.append([])
            real = length
        result[-1].append(index)
    return result


def _spread(rows: Tensor, mask: Tensor, fill: int) -> Tensor:
    """Packed rows ``[T]`` to ``[N, width]``, ``fill`` where the mask is False."""
    spread = torch.full(mask.shape, fill, dtype=rows.dtype, device=rows.device)
    spread[mask] = rows
    return spread


def _in_order(rows: Rows, order: Sequence[int]) -> list[Array]:
    """The answers as float32 arrays; ``order[i]`` is where the i-th of ``rows`` goes."""
    values = rows.values.float().cpu().numpy()
    parts = values if rows.counts is None else np.split(values, np.cumsum(rows.counts)[:-1])
    answers: list[Array] = [values] * len(order)
    for part, place in zip(parts, order, strict=True):
        answers[place] = part
    return answers
