"""From logits to labels sorted by score: what all classifying tasks share."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sluice_worker.engines.base import Array

Scores = npt.NDArray[np.float64]


def softmax(logits: Array | Scores) -> Scores:
    """Probabilities that sum to 1 along the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    total: Scores = shifted / shifted.sum(axis=-1, keepdims=True)
    return total


def sigmoid(logits: Array | Scores) -> Scores:
    """A probability for each by itself, without overflow for large negative logits."""
    halved: Scores = 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))
    return halved


def unchanged(logits: Array | Scores) -> Scores:
    """The model's own numbers."""
    return logits.astype(np.float64)


ACTIVATIONS: Mapping[str, Callable[[Array | Scores], Scores]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": unchanged,
}
"""By their names in ``models.description``."""


def rank(
    labels: tuple[str, ...] | list[str], scores: Any, top: int | None
) -> list[tuple[str, float, int]]:
    """(label, score, id), best first; equal scores keep the labels' order."""
    best = np.argsort(-np.asarray(scores), kind="stable")[:top]
    return [(labels[index], float(scores[index]), int(index)) for index in best]
