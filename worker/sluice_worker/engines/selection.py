"""Which engine a model gets: the leanest that proves itself equal on this very model.

The packed engine is never trusted by the architecture's name alone. When a model is loaded, a few
texts are computed both ways, and the padded engine stays wherever the answers differ.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sluice_api.wording import sentence
from sluice_worker.engines import bert
from sluice_worker.engines.base import Array, Engine, Unit, unit_of
from sluice_worker.engines.encoder import PackedEngine, PaddedEngine
from sluice_worker.engines.reading import FirstTokens, Reading, reading_of
from sluice_worker.models.description import Description, Head, position_offset
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import Manifest

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest difference between two ways to compute the same, against the size of the answer."""

_CLASSES: dict[Head, str] = {
    "none": "AutoModel",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "mask": "AutoModelForMaskedLM",
}
"""What transformers calls a model with each head."""


def build(
    manifest: Manifest,
    description: Description,
    probe: Sequence[Unit],
    *,
    mask_id: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Engine:
    """Read the weights and choose the engine.

    Args:
        probe: texts of different lengths, to compare engines on.
        mask_id: the mask's token id, for a model with a head for it.

    Raises:
        ModelRejected: the weights do not fit the configuration, or the answers are not numbers.
    """
    if bert.serves(description):
        network = bert.BertNetwork(description, _tensors(manifest), dtype=dtype, device=device)
        engine: Engine = PackedEngine(network, reading_of(description, mask_id), device)
        reference = [engine.run([unit])[0] for unit in probe]
        _check(difference(engine.run(probe), reference), dtype)
        return engine
    model = _transformers_model(manifest, description, dtype, device)
    reading = reading_of(description, mask_id)
    return _adapted(model, reading, position_offset(description.config), probe, dtype, device)


def difference(answers: Sequence[Array], reference: Sequence[Array]) -> float:
    """The largest difference, as a share of the reference's largest value (or of 1)."""
    scale = max(1.0, *(float(np.abs(array).max()) for array in reference))
    pairs = zip(answers, reference, strict=True)
    return max(float(np.abs(left - right).max()) for left, right in pairs) / scale


def _adapted(
    model: Any,
    reading: Reading,
    offset: int,
    probe: Sequence[Unit],
    dtype: torch.dtype,
    device: torch.device,
) -> Engine:
    from sluice_worker.engines.adapter import AdaptedNetwork
    from sluice_worker.engines.interface import NotPackable

    most = _most_together(model, reading)
    padded = PaddedEngine(model, reading, device, most=most)
    probe = [*probe, _shorter(probe[-1])]  # Two of nearly one length: these share a padded batch.
    reference = [padded.run([unit])[0] for unit in probe]
    if not difference(padded.run(probe), reference) <= TOLERANCE[dtype]:
        padded = PaddedEngine(model, reading, device, padding=False, most=most)
        _check(difference(padded.run(probe), reference), dtype)
    usual_attention = model.config._attn_implementation
    try:
        network = AdaptedNetwork(model, offset=offset)
        packed = PackedEngine(network, reading, device)
        found = difference(packed.run(probe), reference)
        if found <= TOLERANCE[dtype]:
            return packed
        reason = f"packed answers differ by {found:.1e}"
    except NotPackable as error:
        reason = str(error)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        # Code we do not know, called in a way its authors may not have meant.
        reason = f"{type(error).__name__}: {error}"
    model.set_attn_implementation(usual_attention)
    log.info("model runs padded", extra={"model": type(model).__name__, "reason": reason})
    return padded


def _most_together(model: Any, reading: Reading) -> int | None:
    """A decoder that classifies by a text's last token finds it by what padding is: without a
    padding token (DialogRPT and other kin of GPT-2), only in a text that stands alone."""
    alone = isinstance(reading, FirstTokens) and model.config.pad_token_id is None
    return 1 if alone else None


def _shorter(unit: Unit) -> Unit:
    """Without two tokens, but with its end, which some heads look for."""
    types = unit.type_ids and (*unit.type_ids[:-3], unit.type_ids[-1])
    return unit_of((*unit.ids[:-3], unit.ids[-1]), types)


def _check(found: float, dtype: torch.dtype) -> None:
    """Refuse a model whose answers are not numbers, or depend on what else is in the batch."""
    if not found <= TOLERANCE[dtype]:  # NaN is never smaller.
        name = str(dtype).removeprefix("torch.")
        raise ModelRejected(
            f"The model's answers are not stable in {name} (difference {found:.1e} between a text "
            "alone and in a batch). Set model.dtype to float32, or check the weights."
        )


def _tensors(manifest: Manifest) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name in manifest.weights:
        if name.endswith(".safetensors"):
            try:
                tensors.update(load_file(manifest.folder / name))
            except SafetensorError as error:
                told = sentence(str(error))
                raise ModelRejected(f"{name} is damaged: {told} Fetch it again.") from error
    return tensors


def _transformers_model(
    manifest: Manifest, description: Description, dtype: torch.dtype, device: torch.device
) -> Any:
    from sluice_worker.engines.pretrained import load_pretrained
    from sluice_worker.engines.without_compiler import without_compiler

    with without_compiler():
        import transformers

        kind = getattr(transformers, _CLASSES[description.head])
    return load_pretrained(kind, manifest, dtype=dtype, device=device)
