"""The rules that change a step's scores, as transformers' own processors, in its own order.

Order and classes are those of ``GenerationMixin._get_logits_processor`` (transformers 5), so that
results are token-equal to ``generate``. A text without rules has no processors and costs nothing.
"""

from typing import Any

import torch
from torch import Tensor

from sluice_worker.engines.seq2seq.decoding import Decoding, Sampling
from sluice_worker.engines.without_compiler import without_compiler

with without_compiler():
    from transformers import (
        EncoderNoRepeatNGramLogitsProcessor,
        EncoderRepetitionPenaltyLogitsProcessor,
        ForcedBOSTokenLogitsProcessor,
        ForcedEOSTokenLogitsProcessor,
        LogitNormalization,
        LogitsProcessorList,
        MinNewTokensLengthLogitsProcessor,
        NoBadWordsLogitsProcessor,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

_PROMPT = 1
"""Tokens that the decoder is given: its start."""


def processors(decoding: Decoding, encoder_ids: tuple[int, ...], device: torch.device) -> "Rules":
    """What ``decoding`` does to the scores of a text that was made from ``encoder_ids``."""
    found = LogitsProcessorList()
    source: Any = torch.tensor([encoder_ids], device=device)
    if decoding.encoder_repetition_penalty != 1.0:
        penalty = decoding.encoder_repetition_penalty
        found.append(EncoderRepetitionPenaltyLogitsProcessor(penalty, source))
    if decoding.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
    if decoding.no_repeat_ngram:
        found.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram))
    if decoding.encoder_no_repeat_ngram:
        size = decoding.encoder_no_repeat_ngram
        found.append(EncoderNoRepeatNGramLogitsProcessor(size, source))
    ends = torch.tensor(decoding.ends, device=device)
    if decoding.never:
        found.append(NoBadWordsLogitsProcessor([list(words) for words in decoding.never], ends))
    if decoding.least and decoding.ends:
        least = decoding.least
        found.append(MinNewTokensLengthLogitsProcessor(_PROMPT, least, ends, device=str(device)))
    if decoding.forced_first is not None:
        found.append(ForcedBOSTokenLogitsProcessor(decoding.forced_first))
    if decoding.forced_last:
        last = torch.tensor(decoding.forced_last, device=device)
        found.append(ForcedEOSTokenLogitsProcessor(_PROMPT + decoding.most, last))
    if decoding.suppressed:
        found.append(SuppressTokensLogitsProcessor([*decoding.suppressed], device=str(device)))
    if decoding.suppressed_first:
        first = _PROMPT + (decoding.forced_first is not None)
        tokens = [*decoding.suppressed_first]
        found.append(SuppressTokensAtBeginLogitsProcessor(tokens, first, device=str(device)))
    if decoding.sampling is not None:
        found.extend(_warpers(decoding.sampling))
    if decoding.renormalized:
        found.append(LogitNormalization())
    return Rules(found)


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    found = LogitsProcessorList()
    if sampling.temperature != 1.0:
        found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        found.append(TopPLogitsWarper(sampling.top_p))
    return found


class Rules:
    """The processors of one text, applied to all of its rows."""

    def __init__(self, found: LogitsProcessorList) -> None:
        self._processors = found

    def __repr__(self) -> str:
        return f"<Rules {', '.join(type(each).__name__ for each in self._processors) or 'none'}>"

    def apply(self, sequences: Tensor, scores: Tensor) -> Tensor:
        """``[rows, length]`` with the start, and ``[rows, vocabulary]`` → the changed scores.

        Never changes ``scores`` in place.
        """
        if not self._processors:
            return scores
        long: Any = sequences
        changed: Tensor = self._processors(long, scores.clone())
        return changed
