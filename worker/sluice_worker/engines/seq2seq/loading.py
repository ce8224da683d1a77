"""A verified folder to an engine that writes texts. The loader calls :func:`build`."""

from collections.abc import Sequence

import torch

from sluice_api.wording import sentence
from sluice_worker.engines.base import Unit
from sluice_worker.engines.pretrained import load_pretrained
from sluice_worker.engines.seq2seq.engine import Seq2SeqEngine
from sluice_worker.engines.without_compiler import without_compiler
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import Manifest

with without_compiler():
    from transformers import AutoModelForSeq2SeqLM


def build(
    manifest: Manifest, canary: Sequence[Unit], *, dtype: torch.dtype, device: torch.device
) -> Seq2SeqEngine:
    """Read the weights, and see that the model's code writes when it is run as ours runs it.

    Raises ModelRejected when one of both is not so.
    """
    model = load_pretrained(AutoModelForSeq2SeqLM, manifest, dtype=dtype, device=device)
    try:
        engine = Seq2SeqEngine(model, device)
        engine.run(canary[:1])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        # Code we do not know, called in a way its authors may not have meant.
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ModelRejected(
            f"config.json: the architecture {model.config.model_type!r} cannot be served by this "
            f"engine: {sentence(reason)} "
            "Set engine.name to an engine that serves it, or use a model of another architecture, "
            "such as BART, Pegasus, T5, Marian, M2M100 or mBART."
        ) from error
    return engine
