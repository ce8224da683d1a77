"""Tiny random causal language models of every kind that is served, and what generate makes of them.

One that means something is ``sluice_worker.examples.chat``.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Third-party deprecations at import are not ours to fix.
    import transformers

MAX_TOKENS = 256
END, PAD = 0, 1

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_TOKENS,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "num_key_value_heads": 2},
    "qwen2": {**_SIZES, "num_key_value_heads": 2},
    "qwen3": {**_SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "mistral": {**_SIZES, "num_key_value_heads": 2, "sliding_window": 12},
    "gpt_neox": _SIZES,
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": MAX_TOKENS,
        "bos_token_id": END,
        "eos_token_id": END,
    },
}
"""Model type → a configuration small enough for tests; all can be served."""


def random_model(
    architecture: str, *, vocabulary: int = 97, positions: int = MAX_TOKENS, seed: int = 0
) -> Any:
    """A random model that repeats itself less than fresh weights do."""
    sizes = ARCHITECTURES[architecture]
    longest = "n_positions" if "n_positions" in sizes else "max_position_embeddings"
    config = transformers.AutoConfig.for_model(
        architecture, vocab_size=vocabulary, **{**sizes, longest: positions}
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def greedy(model: Any, prompt: Sequence[int], tokens: int, **more: Any) -> list[int]:
    """What ``generate`` makes of a prompt, alone."""
    ids = torch.tensor([list(prompt)], device=model.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=PAD,
            **more,
        )
    found: list[int] = output[0, len(prompt) :].tolist()
    return found
