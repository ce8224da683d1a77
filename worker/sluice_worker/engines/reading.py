"""What an engine reads from the hidden states of a batch, by the kind of head a model has.

A sentence vector, the head's word on each first token, its word on every token, or on the masked
ones: the engines compute hidden states the same way for all of them and ask a :class:`Reading` for
the rest. Only rows that are read go through the head.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sluice_worker.engines.network import Network
from sluice_worker.engines.packing import Packed
from sluice_worker.engines.pooling import pool, unit_length
from sluice_worker.models.description import Description, Pooling


@dataclass(frozen=True, slots=True)
class Rows:
    """Answers of a batch, in packed order.

    Attributes:
        values: one row after the other.
        counts: how many of them each text has; None where each has one and the answer is the row.
    """

    values: Tensor
    counts: list[int] | None = None


class Reading(Protocol):
    """Stateless."""

    def packed(self, network: Network, batch: Packed) -> Rows:
        """Compute ``batch`` and read it."""
        ...

    def padded(self, output: Any, real: Tensor, batch: Packed) -> Rows:
        """Read a transformers model's own output for ``batch``.

        Args:
            real: ``[N, width]``, False where there is padding; its True places are the rows of
                ``batch`` in order.
        """
        ...


def reading_of(description: Description, mask_id: int | None) -> Reading:
    """The reading that a model's head asks for; ``mask_id`` is there for the head ``mask``."""
    if description.pooling is not None:
        return Pooled(description.pooling)
    if description.head == "sequence":
        return FirstTokens()
    if mask_id is not None:
        return MaskedTokens(mask_id)
    return EveryToken()


@dataclass(frozen=True, slots=True)
class Pooled:
    """One vector a text: ``[hidden]``."""

    pooling: Pooling

    def packed(self, network: Network, batch: Packed) -> Rows:
        mode, normalize = self.pooling.mode, self.pooling.normalize
        if mode == "cls":
            first = network.first(batch)
            return Rows(unit_length(first) if normalize else first)
        return Rows(pool(network.hidden(batch), batch, mode, normalize=normalize))

    def padded(self, output: Any, real: Tensor, batch: Packed) -> Rows:
        hidden: Tensor = output.last_hidden_state[real]
        mode, normalize = self.pooling.mode, self.pooling.normalize
        return Rows(pool(hidden, batch, mode, normalize=normalize))


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The head's logits for a text: ``[labels]``."""

    def packed(self, network: Network, batch: Packed) -> Rows:
        return Rows(network.logits(network.first(batch)))

    def padded(self, output: Any, real: Tensor, batch: Packed) -> Rows:
        return Rows(logits_of(output))


@dataclass(frozen=True, slots=True)
class EveryToken:
    """The head's logits for each token of a text, special ones too: ``[tokens, labels]``."""

    def packed(self, network: Network, batch: Packed) -> Rows:
        return Rows(network.logits(network.hidden(batch)), _lengths(batch))

    def padded(self, output: Any, real: Tensor, batch: Packed) -> Rows:
        return Rows(logits_of(output)[real], _lengths(batch))


@dataclass(frozen=True, slots=True)
class MaskedTokens:
    """The head's logits for each mask of a text, in order: ``[masks, vocabulary]``."""

    mask_id: int

    def packed(self, network: Network, batch: Packed) -> Rows:
        masked = batch.ids == self.mask_id
        return Rows(network.logits(network.hidden(batch)[masked]), _counts(masked, batch))

    def padded(self, output: Any, real: Tensor, batch: Packed) -> Rows:
        masked = batch.ids == self.mask_id
        places = torch.zeros_like(real)
        places[real] = masked
        return Rows(logits_of(output)[places], _counts(masked, batch))


def logits_of(output: Any) -> Tensor:
    """The logits of any head; begin and end of a span as two of each token."""
    logits: Tensor | None = output.get("logits")
    if logits is None:
        logits = torch.stack((output.start_logits, output.end_logits), dim=-1)
    return logits


def _lengths(batch: Packed) -> list[int]:
    return [group.length for group in batch.groups for _ in range(group.count)]


def _counts(wanted: Tensor, batch: Packed) -> list[int]:
    """How many of the wanted rows each text has."""
    texts = torch.repeat_interleave(torch.tensor(_lengths(batch), device=wanted.device))
    counts: list[int] = torch.bincount(texts[wanted], minlength=len(batch.order)).tolist()
    return counts
