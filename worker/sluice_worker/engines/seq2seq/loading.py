"""A verified folder to an engine that writes texts. The loader calls :func:`build`."""

import torch

from sluice_worker.engines.pretrained import load_pretrained
from sluice_worker.engines.seq2seq.engine import Seq2SeqEngine
from sluice_worker.engines.without_compiler import without_compiler
from sluice_worker.models.manifest import Manifest

with without_compiler():
    from transformers import AutoModelForSeq2SeqLM


def build(manifest: Manifest, *, dtype: torch.dtype, device: torch.device) -> Seq2SeqEngine:
    """Read the weights. Raises ModelRejected when they do not fit the configuration."""
    model = load_pretrained(AutoModelForSeq2SeqLM, manifest, dtype=dtype, device=device)
    return Seq2SeqEngine(model, device)
