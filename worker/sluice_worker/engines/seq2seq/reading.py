"""The encoder's side of texts that are written: what it says of each, for the decoder to look at.

Texts are read packed, one row of tokens without padding, as encoders are (``engines.interface``):
the model's own code with our attention, positions told token by token, and relative positions
computed for the longest text alone. Whether that is right is measured when the model is loaded,
against each text read by itself; where it is not, texts are read in buckets of similar length.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sluice_worker.engines.base import Unit
from sluice_worker.engines.encoder import buckets
from sluice_worker.engines.interface import ATTENTION, NotPackable, attending, current_batch
from sluice_worker.engines.packing import Packed, pack
from sluice_worker.engines.selection import TOLERANCE
from sluice_worker.engines.seq2seq.positions import positions_at, tell_positions

log = logging.getLogger(__name__)

_KNOWN = frozenset(
    ("bart", "blenderbot", "m2m_100", "marian", "mbart", "mt5", "pegasus", "plbart", "t5", "umt5")
)
"""Encoders in which tokens meet in the attention alone, whatever their number. Others have experts
that share a batch's tokens out, or read long texts in another way than short ones, which the few
short texts of the proof could not show."""

_PROBE_LENGTHS = (3, 17, 17, 40)

Ids = Sequence[int]


class BucketReader:
    """Texts of similar length at a time, as the model's own code takes them."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._encoder = model.get_encoder()
        self._device = device
        self._pad_id = model.config.pad_token_id or 0

    def __repr__(self) -> str:
        return "in buckets"

    def read(self, texts: Sequence[Ids]) -> Tensor:
        """Encoder states ``[N, longest, hidden]``, 0 behind the end of a text."""
        lengths = [len(ids) for ids in texts]
        hidden: Tensor | None = None
        for bucket in buckets(lengths):
            width = lengths[bucket[-1]]
            ids = torch.full((len(bucket), width), self._pad_id)
            mask = torch.zeros((len(bucket), width), dtype=torch.long)
            for row, index in enumerate(bucket):
                ids[row, : lengths[index]] = torch.tensor(texts[index])
                mask[row, : lengths[index]] = 1
            mask = mask.to(self._device)
            states = self._encoder(
                input_ids=ids.to(self._device), attention_mask=mask
            ).last_hidden_state
            if hidden is None:
                hidden = states.new_zeros(len(texts), max(lengths), states.shape[-1])
            hidden[torch.tensor(bucket, device=self._device), :width] = states * mask.unsqueeze(-1)
        assert hidden is not None, "a batch holds at least one text"
        return hidden


class PackedReader:
    """All texts of a batch in one row of tokens.

    Raises:
        NotPackable: the encoder's code has no place for our attention or for positions.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        if model.config.model_type not in _KNOWN:
            raise NotPackable(f"{model.config.model_type} is not known to read token by token")
        self._encoder = _second(model.get_encoder())
        self._device = device
        biased = [module for module in self._encoder.modules() if hasattr(module, "compute_bias")]
        if not biased and not tell_positions(self._encoder):
            raise NotPackable("its encoder cannot be told positions")
        for module in biased:
            module.compute_bias = _bias_of_longest(module.compute_bias)
        for module in self._encoder.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = ATTENTION

    def __repr__(self) -> str:
        return "packed"

    def read(self, texts: Sequence[Ids]) -> Tensor:
        """As :meth:`BucketReader.read`."""
        batch = pack([Unit(tuple(ids), None, b"") for ids in texts], self._device)
        states = self._states(batch)
        longest = batch.groups[-1].length
        hidden = states.new_zeros(len(texts), longest, states.shape[-1])
        order = torch.tensor(batch.order, device=self._device)
        for group in batch.groups:
            rows = states[group.rows].view(group.count, group.length, -1)
            hidden[order[group.texts], : group.length] = rows
        return hidden

    def _states(self, batch: Packed) -> Tensor:
        with attending(batch), positions_at(batch.positions.unsqueeze(0)):
            output = self._encoder(input_ids=batch.ids.unsqueeze(0))
        states: Tensor = output.last_hidden_state[0]
        return states


Reader = BucketReader | PackedReader


@torch.inference_mode()
def reader_for(model: Any, device: torch.device) -> Reader:
    """The leanest way to read that proves itself equal on this very model."""
    usual = BucketReader(model, device)
    texts = _probe(model.config.vocab_size)
    alone = [usual.read([text])[0] for text in texts]
    try:
        packed = PackedReader(model, device)
        found = _difference(packed.read(texts), alone)
        if found <= TOLERANCE[alone[0].dtype]:
            return packed
        reason = f"packed states differ by {found:.1e}"
    except NotPackable as error:
        reason = str(error)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        # Code we do not know, called in a way its authors may not have meant.
        reason = f"{type(error).__name__}: {error}"
    log.info("sources are read in buckets", extra={"model": type(model).__name__, "reason": reason})
    return usual


def _probe(vocabulary: int) -> list[list[int]]:
    """A few texts of any ids; the spacing keeps clear of the special ones at the beginning."""
    chance = torch.Generator().manual_seed(0)
    low = min(8, vocabulary - 1)
    return [
        torch.randint(low, vocabulary, (length,), generator=chance).tolist()
        for length in _PROBE_LENGTHS
    ]


def _difference(states: Tensor, alone: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest value (or of 1)."""
    scale = max(1.0, *(float(each.abs().max()) for each in alone))
    pairs = zip(states, alone, strict=True)
    return max(float((mine[: len(own)] - own).abs().max()) for mine, own in pairs) / scale


def _second(encoder: Any) -> Any:
    """Another encoder of the same weights, with modules and settings of its own.

    So the model itself stays as it is: its encoder often shares its settings with the decoder,
    whose attention must not change.
    """
    weights = (*encoder.parameters(), *encoder.buffers())
    return copy.deepcopy(encoder, {id(tensor): tensor for tensor in weights})


def _bias_of_longest(usual: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Relative positions of a packed batch: those of its longest text hold all others'."""

    def compute(query_length: int, key_length: int, **named: Any) -> Tensor:
        batch = current_batch()
        if batch is not None:
            query_length = key_length = batch.groups[-1].length
        return usual(query_length, key_length, **named)

    return compute
