"""From logits to tokens, each row by its own rules.

The order is that of transformers: repetition penalty, OpenAI's penalties, bias, grammar, then
temperature, top-k, top-p, min-p. A row that is greedy and has no rules costs one argmax. A drawn
row uses one number from its own generator, so its tokens do not depend on its neighbours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_FEW = 1024
"""The most probable tokens that usually hold all of top-p; only else is everything sorted."""


class Grammar(Protocol):
    """Which tokens may come next."""

    def mask(self, row: Tensor) -> None:
        """Set what may not come to minus infinity, in place. May raise, as ``advance`` may."""
        ...

    def advance(self, token: int) -> None:
        """The token was chosen."""
        ...

    @property
    def ended(self) -> bool:
        """Nothing may come any more."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one sequence's tokens are chosen. The defaults choose the most probable one.

    Attributes:
        temperature: 0 for the most probable.
        top_k: 0 for no bound.
        presence, frequency: OpenAI's penalties, on what was written so far.
        repetition: Keskar et al. 2019, on the prompt as well; 1 for none.
        bias: added to the logits of these tokens.
        logprobs: how many alternatives to report; None for no probabilities.
        seed: of the generator; None for one that nobody can know.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    seed: int | None = None


class Sampler:
    """The rules of one sequence, with their state."""

    def __init__(self, sampling: Sampling = Sampling(), grammar: Grammar | None = None) -> None:
        self.sampling = sampling
        self._grammar = grammar
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        s = sampling
        penalised = s.presence != 0 or s.frequency != 0 or s.repetition != 1
        self.adjusts = penalised or bool(s.bias) or grammar is not None
        self.plain = not self.adjusts and s.temperature == 0 and s.logprobs is None

    def __repr__(self) -> str:
        return f"<Sampler {self.sampling}>"

    @property
    def ended(self) -> bool:
        return self._grammar is not None and self._grammar.ended

    def adjust(self, row: Tensor, ids: Sequence[int], prompt: int) -> None:
        """Apply penalties, bias and grammar to ``row`` in place."""
        s = self.sampling
        if s.repetition != 1:
            seen = torch.tensor(sorted(set(ids)), device=row.device)
            found = row[seen]
            row[seen] = torch.where(found < 0, found * s.repetition, found / s.repetition)
        if (s.presence or s.frequency) and len(ids) > prompt:
            written, counts = torch.unique(
                torch.tensor(ids[prompt:], device=row.device), return_counts=True
            )
            row[written] -= s.presence + s.frequency * counts.to(row.dtype)
        for token, bias in s.bias.items():
            row[token] += bias
        if self._grammar is not None:
            self._grammar.mask(row)

    def draw(self, row: Tensor) -> int:
        """Draw from ``[vocabulary]`` logits."""
        values, tokens = self._candidates(row / self.sampling.temperature)
        total = values.double().softmax(0).cumsum(0)
        drawn = torch.rand(1, generator=self._generator, dtype=torch.float64).to(total.device)
        place = int(torch.searchsorted(total, drawn * total[-1], right=True))
        place = min(place, len(values) - 1)
        return place if tokens is None else int(tokens[place])

    def advance(self, token: int) -> None:
        if self._grammar is not None:
            self._grammar.advance(token)

    def _candidates(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """The scores that may be drawn and their tokens; None where these are all in order."""
        s = self.sampling
        values, tokens = scores, None
        if 0 < s.top_k < len(scores):
            values, tokens = scores.topk(s.top_k)
            values, tokens = self._nucleus(values, tokens, values.logsumexp(0))
        elif s.top_p < 1:
            whole = scores.logsumexp(0)
            values, tokens = scores.topk(min(_FEW, len(scores)))
            if (values - whole).exp().sum() < s.top_p:
                values, tokens = scores.sort(descending=True)
            values, tokens = self._nucleus(values, tokens, whole)
        if s.min_p > 0:
            values = values.masked_fill(values < values.max() + math.log(s.min_p), -torch.inf)
        return values, tokens

    def _nucleus(self, values: Tensor, tokens: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Of sorted scores, the first that reach ``top_p`` together."""
        if self.sampling.top_p >= 1:
            return values, tokens
        shares = (values - whole).exp()
        kept = int((shares.cumsum(0) - shares < self.sampling.top_p).sum())
        return values[: max(1, kept)], tokens[: max(1, kept)]


class Drawn(NamedTuple):
    """A token, and where they were wanted natural logarithms of probabilities: its own, the top."""

    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Context(Protocol):
    """What a row's rules look back on; a :class:`.sequence.Sequence` is one."""

    sampler: Sampler
    ids: list[int]
    prompt: int


def choose(logits: Tensor, rows: Sequence[Context]) -> list[Drawn | Exception]:
    """One token for each row of ``[rows, vocabulary]``, by which grammars advance; or what a row's
    own rules failed with."""
    if all(row.sampler.plain for row in rows):
        return [Drawn(token) for token in logits.argmax(-1).tolist()]
    logits = logits.float()
    scores = logits
    failed: dict[int, Exception] = {}
    if any(row.sampler.adjusts for row in rows):
        scores = logits.clone()
        for place, row in enumerate(rows):
            if row.sampler.adjusts:
                try:
                    row.sampler.adjust(scores[place], row.ids, row.prompt)
                except Exception as failure:
                    failed[place] = failure
    tokens: list[int] = scores.argmax(-1).tolist()
    return [
        failed.get(place) or _settled(row.sampler, logits[place], scores[place], tokens[place])
        for place, row in enumerate(rows)
    ]


def _settled(sampler: Sampler, row: Tensor, scores: Tensor, token: int) -> Drawn | Exception:
    """The token of one row; ``token`` if it takes the most probable one."""
    try:
        if sampler.sampling.temperature > 0:
            token = sampler.draw(scores)
        sampler.advance(token)
    except Exception as failure:
        return failure
    return _scored(row, token, sampler.sampling.logprobs)


def _scored(row: Tensor, token: int, alternatives: int | None) -> Drawn:
    """Probabilities are the model's own, before any rule."""
    if alternatives is None:
        return Drawn(token)
    logprobs = row.log_softmax(-1)
    values, tokens = logprobs.topk(alternatives)
    top = list(zip(tokens.tolist(), values.tolist(), strict=True))
    return Drawn(token, float(logprobs[token]), top)
