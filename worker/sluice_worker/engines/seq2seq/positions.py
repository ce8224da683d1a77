"""Absolute positions, told to a model's code token by token.

Encoders and decoders of transformers count positions for a whole batch, from the length of its
cache. Rows that joined later are younger than that, and in a packed row many texts begin; so the
module that looks positions up is replaced by one that asks the calling context. Where there is no
such module (T5) positions are relative, which need nothing here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

_told: ContextVar[Tensor | None] = ContextVar("position of each token", default=None)


@contextmanager
def positions_at(places: Tensor | None) -> Iterator[None]:
    """Within this context the tokens ``[rows, columns]`` of a call stand at ``places`` of the same
    shape; None lets the model count."""
    token = _told.set(places)
    try:
        yield
    finally:
        _told.reset(token)


def adapt(model: Any) -> bool:
    """Have ``model``'s decoder ask for positions; whether it can be told them."""
    decoder = model.get_decoder()
    if getattr(decoder, "embed_positions", None) is None:
        return "t5" in model.config.model_type or model.config.model_type == "switch_transformers"
    return tell_positions(decoder)


def tell_positions(part: Any) -> bool:
    """Have an encoder or a decoder ask for absolute positions; whether it can be told them."""
    positions = getattr(part, "embed_positions", None)
    if isinstance(positions, _ToldPositions):
        return True
    table = _table(positions)
    if table is None:
        return False
    part.embed_positions = _ToldPositions(positions, *table)
    return True


class _ToldPositions(nn.Module):
    """Stands where the module ``usual`` was, which still answers whenever nobody says otherwise.

    Args:
        table: attribute of ``usual`` that holds a vector for each place.
        first: place of the first position.
    """

    def __init__(self, usual: Any, table: str, first: int) -> None:
        super().__init__()
        self.usual = usual
        self._table = table
        self._first = first

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        places = _told.get()
        if places is None or places.shape[1] == 1:
            counted: Tensor = self.usual(*arguments, **named)  # A step may lengthen its table.
            if places is None:
                return counted
        vectors: Tensor = getattr(self.usual, self._table)[places + self._first]
        return vectors


def _table(positions: Any) -> tuple[str, int] | None:
    """Where the vectors stand in a module that looks positions up; None for one we do not know."""
    if isinstance(positions, nn.Embedding):  # BART, mBART, Marian, Pegasus
        return "weight", int(getattr(positions, "offset", 0))
    if hasattr(positions, "weights") and getattr(positions, "padding_idx", None) is not None:
        return "weights", int(positions.padding_idx) + 1  # M2M100 and NLLB
    return None
