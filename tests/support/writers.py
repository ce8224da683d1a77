"""Tiny random models that write texts, of every architecture, with the tokenizer it comes with."""

from pathlib import Path
from typing import Any

import torch

from sluice_worker.examples.writing import (
    END,
    PAD,
    make_pieces,
    save_model,
    save_tokenizer,
    small_model,
)
from tests.support.models import random_texts, scramble

__all__ = ["ARCHITECTURES", "END", "PAD", "build_tiny_writer"]

_SMALLER = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2},
    "bart": _SMALLER,
    "marian": _SMALLER,
    "m2m_100": _SMALLER,
    "mbart": _SMALLER,
    "pegasus": _SMALLER,
}
"""Model type → members of its config."""


def build_tiny_writer(
    folder: Path,
    architecture: str,
    *,
    generation: dict[str, Any] | None = None,
    markers: tuple[str, ...] = (),
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Save a random model and its tokenizer.

    Args:
        generation: members of its generation_config.json.
        markers: added tokens of its tokenizer.
        settings: members of its config.json.
    """
    pieces = make_pieces(random_texts(300, seed=1))
    vocabulary = save_tokenizer(folder, architecture, pieces, markers=markers)
    torch.manual_seed(seed)
    model = small_model(architecture, vocabulary, **{**ARCHITECTURES[architecture], **settings})
    scramble(model)
    save_model(model, folder, **{"max_length": 24, **(generation or {})})
    return folder
