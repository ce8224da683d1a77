"""What a model says of itself about generating: its ``generation_config.json``.

A caller's parameter goes before it. Only what the file really says counts; transformers' own
defaults (a top-k of 50) would surprise whoever asks for nothing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluice_api.shapes.generation import Parameters, asks_for_sampling
from sluice_worker.engines.decoder.sampling import Sampling
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import Manifest

log = logging.getLogger(__name__)

_PASSED_OVER: Mapping[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1, 1.0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "sequence_bias": (None, {}),
    "stop_strings": (None, []),
    "suppress_tokens": (None, []),
}
"""Members that change what transformers writes and are not served, with the values that change
nothing."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """
    Attributes:
        stop_ids: each ends a text.
        sampled: tokens are drawn where the caller does not say.
        temperature, top_k, top_p, min_p, repetition: where tokens are drawn, or penalised.
    """

    stop_ids: frozenset[int]
    sampled: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0

    def draws(self, asked: Parameters) -> bool:
        """Whether chance has a part in the answer."""
        if asked.temperature is not None:
            return asked.temperature > 0
        return asks_for_sampling(asked) or (self.sampled and self.temperature > 0)

    def sampling(self, asked: Parameters, choice: int) -> Sampling:
        """How the tokens of one choice are chosen. Each choice has a seed of its own."""
        draws = self.draws(asked)
        given = self.temperature if asked.temperature is None else asked.temperature
        return Sampling(
            temperature=given if draws else 0.0,
            top_k=_first(asked.top_k, self.top_k),
            top_p=_first(asked.top_p, self.top_p),
            min_p=_first(asked.min_p, self.min_p),
            presence=asked.presence_penalty,
            frequency=asked.frequency_penalty,
            repetition=_first(asked.repetition_penalty, self.repetition),
            bias={int(token): bias for token, bias in asked.logit_bias.items()},
            logprobs=asked.logprobs,
            seed=None if asked.seed is None else (asked.seed + choice) % 2**64,
        )


def defaults_of(manifest: Manifest, config: Mapping[str, Any]) -> Defaults:
    """Read the model's files. Raises ModelRejected."""
    given = manifest.read_json("generation_config.json") or {}
    passed_over = [name for name, same in _PASSED_OVER.items() if given.get(name) not in same]
    if passed_over:
        log.warning(
            "generation_config.json says what is not served", extra={"members": passed_over}
        )
    stops = given.get("eos_token_id", config.get("eos_token_id"))
    ids = stops if isinstance(stops, list) else [] if stops is None else [stops]
    try:
        return Defaults(
            stop_ids=frozenset(int(token) for token in ids),
            sampled=bool(given.get("do_sample")),
            temperature=float(_first(given.get("temperature"), 1.0)),
            top_k=int(_first(given.get("top_k"), 0)),
            top_p=float(_first(given.get("top_p"), 1.0)),
            min_p=float(_first(given.get("min_p"), 0.0)),
            repetition=float(_first(given.get("repetition_penalty"), 1.0)),
        )
    except (TypeError, ValueError) as error:
        raise ModelRejected(
            f"generation_config.json cannot be used: {error}. Save it again."
        ) from None


def _first(given: Any, default: Any) -> Any:
    return default if given is None else given
