"""The head of a large vocabulary on a CPU, a piece of its outputs at a time."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_PIECE = 1024
"""Outputs that are computed at once."""


class WideHead(nn.Module):
    """Stands in for a linear layer and shares its weights.

    Few rows by very many outputs in one product take MKL up to half as long again.
    """

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = whole.weight, whole.bias

    def forward(self, rows: Tensor) -> Tensor:
        """``[n, size]`` → ``[n, outputs]``."""
        parts = [slice(start, start + _PIECE) for start in range(0, len(self.weight), _PIECE)]
        biases = [None if self.bias is None else self.bias[part] for part in parts]
        pieces = zip(parts, biases, strict=True)
        return torch.cat([linear(rows, self.weight[part], bias) for part, bias in pieces], -1)
