"""The engine for models that read one text and write another: BART, T5, Marian, M2M100 and kin.

Texts are read packed, without padding (``reading``); then all texts of a batch are written side by
side, one token a step, with transformers' own decoder and caches. A text that is done, or that
nobody waits for any more, leaves the batch at once, and a waiting one takes its place (``Feed``).
Every text gets the tokens that it would get alone.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sluice_worker.engines.base import Array, Feed, Unit
from sluice_worker.engines.seq2seq.batch import Batch
from sluice_worker.engines.seq2seq.decoding import GenerationUnit, write
from sluice_worker.engines.seq2seq.positions import adapt
from sluice_worker.engines.seq2seq.reading import reader_for
from sluice_worker.engines.seq2seq.rules import processors
from sluice_worker.engines.seq2seq.search import Next, Search, search_for

MAX_ROWS = 64
"""Beams written side by side; texts beyond them wait until others are done."""


class Seq2SeqEngine:
    """Implements :class:`sluice_worker.engines.base.StepwiseEngine`.

    Args:
        model: of transformers, with an encoder, a decoder and a language modelling head. From here
            on it belongs to this object, because its decoder is told positions row by row.
        rows: see :data:`MAX_ROWS`.
    """

    name = "seq2seq"
    stepwise = True

    def __init__(self, model: Any, device: torch.device, *, rows: int = MAX_ROWS) -> None:
        self.refills = adapt(model)
        """Texts may join a batch that is under way; False where the decoder cannot be told so."""
        self._model = model
        self._device = device
        self._rows = rows
        self.reader = reader_for(model, device)

    def __repr__(self) -> str:
        kind = "refilled" if self.refills else "whole"
        name = type(self._model).__name__
        return f"<Seq2SeqEngine {name} on {self._device}, read {self.reader!r}, {kind} batches>"

    def run(self, units: Sequence[Unit]) -> list[Array]:
        feed = _Given(units)
        self.serve(feed)
        return feed.results

    @torch.inference_mode()
    def serve(self, feed: Feed) -> None:
        """Write what ``feed`` gives until it gives no more."""
        writing = _Writing(self, feed)
        while writing.fill() or not feed.close():
            writing.step()

    def start(self, units: Sequence[GenerationUnit]) -> Batch:
        """Read texts, and be ready for their first step."""
        texts = [unit.ids for unit in units]
        hidden = self.reader.read(texts)
        lengths = torch.tensor([len(ids) for ids in texts], device=self._device)
        places = torch.arange(hidden.shape[1], device=self._device)
        return Batch(self._model, hidden, (places < lengths[:, None]).long())

    def room(self, used: int, unit: GenerationUnit) -> bool:
        """Whether ``unit`` may be written beside ``used`` other rows."""
        return used == 0 or (used + unit.decoding.beams <= self._rows)

    def search(self, unit: GenerationUnit) -> Search:
        rules = processors(unit.decoding, unit.ids, self._device)
        return search_for(unit.decoding, rules, self._device)

    def first(self, units: Sequence[GenerationUnit]) -> Tensor:
        return torch.tensor([unit.decoding.start for unit in units], device=self._device)

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        """What is written; where none may join, as if all were as long as the longest, so that the
        loop brings alike ones together."""
        return sum(lengths) if self.refills else len(lengths) * max(lengths)


class _Live:
    """A text on its way: its place in the feed, its unit and its search."""

    __slots__ = ("place", "rows", "search", "unit")

    def __init__(self, place: int, unit: GenerationUnit, search: Search) -> None:
        self.place = place
        self.unit = unit
        self.search = search
        self.rows = 1


class _Writing:
    """One batch from its first text to its last."""

    def __init__(self, engine: Seq2SeqEngine, feed: Feed) -> None:
        self._engine = engine
        self._feed = feed
        self._waiting: deque[tuple[int, GenerationUnit]] = deque()
        self._live: list[_Live] = []
        self._batch: Batch | None = None
        self._tokens: Tensor | None = None

    def fill(self) -> bool:
        """Let waiting texts in where there is room; whether there is anything to write."""
        for place, unit in self._feed.take():
            self._waiting.append((place, _generation(unit)))
        newcomers = self._newcomers()
        if newcomers:
            self._enter(newcomers)
        return bool(self._live or self._waiting)

    def step(self) -> None:
        """Write one token of every text that is on its way."""
        if self._live:
            assert self._batch is not None
            assert self._tokens is not None
            logits = self._batch.step(self._tokens)
            self._live, self._batch, self._tokens = self._advance(self._live, self._batch, logits)

    def _newcomers(self) -> list[_Live]:
        if self._live and not self._engine.refills:
            return []
        found: list[_Live] = []
        used = sum(text.rows for text in self._live)
        while self._waiting and self._engine.room(used, self._waiting[0][1]):
            place, unit = self._waiting.popleft()
            if unit.stop.asked:
                self._feed.finish(place, write([], []))
                continue
            used += unit.decoding.beams
            found.append(_Live(place, unit, self._engine.search(unit)))
        return found

    def _enter(self, newcomers: list[_Live]) -> None:
        """Take the first step of ``newcomers`` by themselves, then put them with the others."""
        units = [text.unit for text in newcomers]
        batch = self._engine.start(units)
        logits = batch.step(self._engine.first(units))
        live, entered, tokens = self._advance(newcomers, batch, logits)
        if entered is None or tokens is None:
            return
        if self._batch is not None and self._tokens is not None:
            self._batch.join(entered)
            self._tokens = torch.cat([self._tokens, tokens])
        else:
            self._batch, self._tokens = entered, tokens
        self._live = [*self._live, *live]

    def _advance(
        self, live: list[_Live], batch: Batch, logits: Tensor
    ) -> tuple[list[_Live], Batch | None, Tensor | None]:
        """Hand out what is done, and go on with the rest."""
        onward: list[tuple[_Live, int, Next]] = []
        first = 0
        moved = False
        for text in live:
            goes_on = None
            if text.unit.stop.asked:
                self._feed.finish(text.place, write([], []))
            else:
                goes_on = text.search.advance(logits[first : first + text.rows])
                if goes_on is None:
                    self._feed.finish(text.place, text.search.result())
            if goes_on is not None:
                onward.append((text, first, goes_on))
            first += text.rows
            moved |= goes_on is None or len(goes_on.tokens) != text.rows
        if not onward:
            return [], None, None
        for text, _, goes_on in onward:
            text.rows = len(goes_on.tokens)
        reordered = any(goes_on.parents is not None for _, _, goes_on in onward)
        if moved or reordered:
            batch.select(_row_numbers(onward, logits.device), moved=moved)
        tokens = torch.cat([goes_on.tokens for _, _, goes_on in onward])
        return [text for text, _, _ in onward], batch, tokens


class _Given:
    """A feed of the units that are there from the beginning."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = list(enumerate(units))
        self.results: list[Array] = [write([], [])] * len(units)

    def take(self) -> list[tuple[int, Unit]]:
        taken, self._units = self._units, []
        return taken

    def finish(self, place: int, array: Array) -> None:
        self.results[place] = array

    def close(self) -> bool:
        return True


def _row_numbers(onward: list[tuple[_Live, int, Next]], device: torch.device) -> Tensor:
    """The rows that go on, among the present ones."""
    return torch.cat(
        [
            torch.tensor([first], device=device) if parents is None else parents + first
            for _, first, (parents, _) in onward
        ]
    )


def _generation(unit: Unit) -> GenerationUnit:
    assert isinstance(unit, GenerationUnit), "tasks of this engine make no other units"
    return unit
