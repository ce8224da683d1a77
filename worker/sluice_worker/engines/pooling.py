"""From token vectors to one vector per text: the modes of sentence-transformers.

Every mode is a function over texts of equal length, ``[count, length, hidden] → [count, hidden]``;
adding one is adding a line to :data:`MODES`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sluice_worker.engines.packing import Packed


def _first(block: Tensor) -> Tensor:
    return block[:, 0]


def _last(block: Tensor) -> Tensor:
    return block[:, -1]


def _mean(block: Tensor) -> Tensor:
    return block.mean(dim=1)


def _mean_sqrt(block: Tensor) -> Tensor:
    return block.sum(dim=1) / math.sqrt(block.shape[1])


def _max(block: Tensor) -> Tensor:
    return block.amax(dim=1)


def _weighted_mean(block: Tensor) -> Tensor:
    weights = torch.arange(1, block.shape[1] + 1, dtype=block.dtype, device=block.device)
    mean: Tensor = torch.matmul(weights / weights.sum(), block)
    return mean


MODES: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": _first,
    "lasttoken": _last,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
}


def pool(hidden: Tensor, batch: Packed, mode: str, *, normalize: bool) -> Tensor:
    """Token vectors ``[T, hidden]`` to text vectors ``[N, hidden]``, in packed order."""
    one = MODES[mode]
    blocks = [one(hidden[group.rows].view(group.count, group.length, -1)) for group in batch.groups]
    return unit_length(torch.cat(blocks)) if normalize else torch.cat(blocks)


def unit_length(vectors: Tensor) -> Tensor:
    """Each row scaled to length 1."""
    return torch.nn.functional.normalize(vectors, dim=-1)
