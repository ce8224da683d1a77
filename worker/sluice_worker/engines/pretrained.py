"""Weights into a model of transformers: from safetensors only, without code of the model's own."""

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from sluice_worker.engines.without_compiler import without_compiler
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import Manifest

_WRONG_FILES = (
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers raises for files it does not understand: each architecture its own."""


def load_pretrained(
    kind: Any, manifest: Manifest, *, dtype: torch.dtype, device: torch.device
) -> Any:
    """A model of ``kind``, one of transformers' Auto classes, ready to compute.

    Raises ModelRejected: the weights cannot be read, or some are missing.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with without_compiler():
            model, report = kind.from_pretrained(
                str(manifest.folder),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except _WRONG_FILES as error:
        reason = " ".join(str(error).split())
        raise ModelRejected(f"transformers cannot load the model: {reason}") from error
    missing = [name for name in report["missing_keys"] if "pooler." not in name]
    if missing:
        raise ModelRejected(
            f"The weights lack {len(missing)} tensors ({', '.join(sorted(missing)[:3])}). "
            "Fetch or save the whole model again."
        )
    return model.eval().to(device)
