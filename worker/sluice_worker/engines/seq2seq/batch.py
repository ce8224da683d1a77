"""The decoder's side of texts that are written side by side: caches, and what they look at.

Rows that began at different times stand with their ends together: what a younger row lacks at the
left is masked. Absolute positions are told row by row (``positions``); relative ones stay right by
themselves.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sluice_worker.engines.seq2seq.positions import positions_at
from sluice_worker.engines.without_compiler import without_compiler

with without_compiler():
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput


class Batch:
    """Rows of one decoder, each some tokens long.

    Args:
        hidden, mask: what the encoder said of each row ``[rows, source, size]``, and which of it
            there is ``[rows, source]``.
    """

    def __init__(self, model: Any, hidden: Tensor, mask: Tensor) -> None:
        self._model = model
        self._hidden = hidden
        self._mask = mask
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._lengths = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        self._width = 0
        self._ragged = False

    def __repr__(self) -> str:
        return f"<Batch {len(self._lengths)} rows, {self._width} tokens>"

    def step(self, tokens: Tensor) -> Tensor:
        """One token ``[rows]`` in, the logits of the next ``[rows, vocabulary]`` in float32 out."""
        arguments: dict[str, Any] = {}
        if self._ragged:
            arguments["decoder_attention_mask"] = self._written(self._width + 1)
        with positions_at(self._lengths.unsqueeze(1) if self._ragged else None):
            output = self._model(
                encoder_outputs=BaseModelOutput(last_hidden_state=self._hidden),
                attention_mask=self._mask,
                decoder_input_ids=tokens.unsqueeze(1),
                past_key_values=self._cache,
                use_cache=True,
                **arguments,
            )
        self._lengths = self._lengths + 1
        self._width += 1
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def select(self, rows: Tensor, *, moved: bool) -> None:
        """Go on with ``rows`` alone, in that order; a row may be named several times.

        Args:
            moved: rows came or went. Otherwise beams changed places, of which only what they wrote
                takes notice.
        """
        self._cache.self_attention_cache.batch_select_indices(rows)
        if moved:
            self._cache.cross_attention_cache.batch_select_indices(rows)
            self._hidden, self._mask = self._hidden[rows], self._mask[rows]
            self._lengths = self._lengths[rows]
            self._trim()

    def join(self, other: "Batch") -> None:
        """Take over the rows of ``other``, behind our own."""
        width = max(self._width, other._width)
        source = max(self._mask.shape[1], other._mask.shape[1])
        for mine, theirs in zip(_layers(self._cache), _layers(other._cache), strict=True):
            own, its = mine[0], theirs[0]
            own.keys = torch.cat([_longer(own.keys, width), _longer(its.keys, width)])
            own.values = torch.cat([_longer(own.values, width), _longer(its.values, width)])
            seen, their = mine[1], theirs[1]
            seen.keys = torch.cat([_wider(seen.keys, source), _wider(their.keys, source)])
            seen.values = torch.cat([_wider(seen.values, source), _wider(their.values, source)])
        self._hidden = torch.cat([_wider(self._hidden, source), _wider(other._hidden, source)])
        self._mask = torch.cat(
            [pad(each, (0, source - each.shape[1])) for each in (self._mask, other._mask)]
        )
        self._lengths = torch.cat([self._lengths, other._lengths])
        self._width = width
        self._ragged = bool((self._lengths != width).any())

    def _written(self, width: int) -> Tensor:
        """Which of the last ``width`` places each row has, its next token included."""
        places = torch.arange(width, device=self._lengths.device)
        return (places >= (width - 1 - self._lengths)[:, None]).long()

    def _trim(self) -> None:
        """Drop what no row has at the left, and on the right what no row's source has."""
        width = int(self._lengths.max())
        if width < self._width:
            for layer, _ in _layers(self._cache):
                layer.keys = layer.keys[:, :, -width:].contiguous()
                layer.values = layer.values[:, :, -width:].contiguous()
            self._width = width
        self._ragged = bool((self._lengths != width).any())
        source = int(self._mask.sum(dim=1).max())
        if source < self._mask.shape[1]:
            for _, layer in _layers(self._cache):
                layer.keys = layer.keys[:, :, :source].contiguous()
                layer.values = layer.values[:, :, :source].contiguous()
            self._hidden, self._mask = self._hidden[:, :source], self._mask[:, :source]


def _layers(cache: EncoderDecoderCache) -> list[tuple[Any, Any]]:
    """Each layer's cache of what was written, and of what was read."""
    return list(
        zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
    )


def _longer(states: Tensor, width: int) -> Tensor:
    """``[rows, heads, length, size]`` with nothing before it, up to ``width``."""
    return pad(states, (0, 0, width - states.shape[-2], 0))


def _wider(states: Tensor, width: int) -> Tensor:
    """``[…, length, size]`` with nothing behind it, up to ``width``."""
    return pad(states, (0, 0, 0, width - states.shape[-2]))
