"""Which token comes next: one path (greedy or drawn), or several beams, for one text each.

A search is given the logits of its own rows and says which rows go on with which tokens; it knows
nothing of the batch around it. The beams follow ``GenerationMixin._beam_search`` of transformers 5
step by step, for one text, so that the result is the same whatever the neighbours.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sluice_worker.engines.base import Array
from sluice_worker.engines.seq2seq.decoding import Decoding, Sampling, write
from sluice_worker.engines.seq2seq.rules import Rules

_IMPOSSIBLE = -1.0e9
"""Added to the score of what must not be chosen; as large as in transformers."""


class Next(NamedTuple):
    """The rows of a text in the next step.

    Attributes:
        parents: which of its present rows each one goes on from ``[rows]``; None for the same one
            row.
        tokens: what is fed to each ``[rows]``.
    """

    parents: Tensor | None
    tokens: Tensor


class Search(Protocol):
    """One text on its way."""

    def advance(self, logits: Tensor) -> Next | None:
        """Take the logits ``[rows, vocabulary]`` of the last step; None when the text is done."""
        ...

    def result(self) -> Array:
        """What was written, in the form of :func:`decoding.write`. Needs a text that is done."""
        ...


def search_for(decoding: Decoding, rules: Rules, device: torch.device) -> Search:
    """The search that ``decoding`` asks for."""
    if decoding.beams > 1:
        return BeamSearch(decoding, rules, device)
    return PathSearch(decoding, rules, device)


class PathSearch:
    """One path: the most probable token each time, or one drawn by its probability."""

    def __init__(self, decoding: Decoding, rules: Rules, device: torch.device) -> None:
        self._decoding = decoding
        self._rules = rules
        self._sequence = torch.tensor([[decoding.start]], device=device)
        self._draw = _Draw(decoding.sampling, device) if decoding.sampling else None
        self._ids: list[int] = []
        self._logprobs: list[float] = []

    def __repr__(self) -> str:
        return f"<PathSearch {len(self._ids)} of {self._decoding.most} tokens>"

    def advance(self, logits: Tensor) -> Next | None:
        logits = logits.float()  # Half precision ends at 65504, which a low temperature exceeds.
        scores = self._rules.apply(self._sequence, logits)
        token = self._draw.token(scores) if self._draw else scores.argmax(dim=-1)
        chosen = int(token)
        self._ids.append(chosen)
        self._logprobs.append(float(logits[0, chosen] - logits[0].logsumexp(dim=-1)))
        if chosen in self._decoding.ends or len(self._ids) == self._decoding.most:
            return None
        self._sequence = torch.cat([self._sequence, token.view(1, 1)], dim=1)
        return Next(None, token)

    def result(self) -> Array:
        return write(self._ids, self._logprobs)


class _Draw:
    """Random tokens with a generator of the text's own, so that neighbours change nothing."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def token(self, scores: Tensor) -> Tensor:
        chances = torch.softmax(scores, dim=-1)
        return torch.multinomial(chances, 1, generator=self._generator).squeeze(1)


class _Beams(NamedTuple):
    """Several sequences with their scores, best first.

    Attributes:
        ids: ``[beams, length]``, the start included.
        logprobs: of the ids behind the start, ``[beams, length - 1]``.
        lengths: of the ids, ``[beams]``; finished ones may be shorter than the tensor is wide.
        scores: ``[beams]``.
        finished: ``[beams]``.
    """

    ids: Tensor
    logprobs: Tensor
    lengths: Tensor
    scores: Tensor
    finished: Tensor

    def take(self, places: Tensor) -> "_Beams":
        return _Beams(*(field[places] for field in self))

    def widened(self) -> "_Beams":
        """One more column, to stand beside sequences that grew."""
        pad = torch.nn.functional.pad
        return self._replace(ids=pad(self.ids, (0, 1)), logprobs=pad(self.logprobs, (0, 1)))


class BeamSearch:
    """The best of several paths by the sum of their log-probabilities and the length penalty."""

    def __init__(self, decoding: Decoding, rules: Rules, device: torch.device) -> None:
        self._decoding = decoding
        self._rules = rules
        self._ends = torch.tensor(decoding.ends, device=device)
        count = decoding.beams
        empty = _Beams(
            ids=torch.full((count, 1), decoding.start, device=device),
            logprobs=torch.zeros((count, 0), device=device),
            lengths=torch.ones(count, dtype=torch.long, device=device),
            scores=torch.full((count,), _IMPOSSIBLE, device=device),
            finished=torch.zeros(count, dtype=torch.bool, device=device),
        )
        # All beams begin alike, so only the first one may be gone on from.
        self._running = empty._replace(scores=empty.scores.index_fill(0, _first(device), 0.0))
        self._best = empty
        self._improvable = True

    def __repr__(self) -> str:
        done = int(self._best.finished.sum())
        return f"<BeamSearch {self._running.ids.shape[1] - 1} tokens, {done} beams finished>"

    def advance(self, logits: Tensor) -> Next | None:
        count = self._decoding.beams
        first_step = logits.shape[0] == 1
        logprobs = torch.log_softmax(logits.float(), dim=-1).expand(count, -1)
        grown, parents = self._grow(logprobs)
        stops = self._stops(grown)
        running, places = self._go_on(grown, stops)
        self._finish(grown, stops)
        self._running = running
        self._improvable = self._can_improve()
        if not self._unfinished(stops):
            return None
        parents = torch.zeros_like(places) if first_step else parents[places]
        return Next(parents, running.ids[:, -1])

    def result(self) -> Array:
        best = self._best
        length = int(best.lengths[0])
        return write(best.ids[0, 1:length].tolist(), best.logprobs[0, : length - 1].tolist())

    def _grow(self, logprobs: Tensor) -> tuple[_Beams, Tensor]:
        """The best continuations of all beams, more than can go on, and the beam each is of."""
        running, vocabulary = self._running, logprobs.shape[-1]
        changed = self._rules.apply(running.ids, logprobs)
        total = (changed + running.scores[:, None]).view(-1)
        keep = max(2, 1 + len(self._decoding.ends)) * self._decoding.beams
        scores, places = torch.topk(total, k=keep)
        parents, tokens = places // vocabulary, places % vocabulary
        grown = _Beams(
            ids=torch.cat([running.ids[parents], tokens[:, None]], dim=1),
            logprobs=torch.cat(
                [running.logprobs[parents], logprobs[parents, tokens][:, None]], dim=1
            ),
            lengths=running.lengths[parents] + 1,
            scores=scores,
            finished=torch.zeros_like(parents, dtype=torch.bool),
        )
        return grown, parents

    def _stops(self, grown: _Beams) -> Tensor:
        if grown.ids.shape[1] > self._decoding.most:
            return torch.ones_like(grown.finished)
        return torch.isin(grown.ids[:, -1], self._ends)

    def _go_on(self, grown: _Beams, stops: Tensor) -> tuple[_Beams, Tensor]:
        """The best continuations that do not end, and their places among ``grown``."""
        scores = grown.scores + stops * _IMPOSSIBLE
        places = torch.topk(scores, k=self._decoding.beams)[1]
        return grown._replace(scores=scores).take(places), places

    def _finish(self, grown: _Beams, stops: Tensor) -> None:
        """Merge the sequences that have just ended into the best ones so far."""
        count = self._decoding.beams
        ended = stops.clone()
        ended[count:] = False  # The others are only there so that enough can go on.
        length = grown.ids.shape[1] - 1
        scores = grown.scores / length**self._decoding.length_penalty
        if self._decoding.early_stopping is True and bool(self._best.finished.all()):
            scores = scores + _IMPOSSIBLE
        if not self._improvable:
            scores = scores + _IMPOSSIBLE
        scores = scores + ~ended * _IMPOSSIBLE
        candidates = grown._replace(scores=scores, finished=ended)
        pairs = zip(self._best.widened(), candidates, strict=True)
        merged = _Beams(*(torch.cat(pair) for pair in pairs))
        self._best = merged.take(torch.topk(merged.scores, k=count)[1])

    def _can_improve(self) -> bool:
        """Whether the best running beam can still beat the worst finished one (a heuristic)."""
        if not self._improvable:
            return False
        penalty = self._decoding.length_penalty
        length = self._running.ids.shape[1] - 1
        if self._decoding.early_stopping == "never" and penalty > 0.0:
            length = self._decoding.most
        possible = self._running.scores[0] / length**penalty
        worst = torch.where(self._best.finished, self._best.scores.min(), _IMPOSSIBLE)
        return bool((possible > worst).any())

    def _unfinished(self, stops: Tensor) -> bool:
        all_done = self._decoding.early_stopping is True and bool(self._best.finished.all())
        return self._improvable and not all_done and not bool(stops.all())


def _first(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.long, device=device)
