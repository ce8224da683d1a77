"""Absolute positions of a decoder's rows, told row by row.

Decoders of transformers count positions for a whole batch, from the length of its cache. Rows that
joined later are younger than that, so the module that looks positions up is replaced by one that
asks the calling context. Decoders without such a module (T5) know relative positions only, which
need nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

_rows: ContextVar[Tensor | None] = ContextVar("position of each row", default=None)


@contextmanager
def rows_at(positions: Tensor | None) -> Iterator[None]:
    """Within this context a decoder's step is at ``positions`` ``[rows]``; None lets it count."""
    token = _rows.set(positions)
    try:
        yield
    finally:
        _rows.reset(token)


def adapt(model: Any) -> bool:
    """Have ``model``'s decoder ask for positions; whether it can be told them."""
    decoder = model.get_decoder()
    positions = getattr(decoder, "embed_positions", None)
    if isinstance(positions, _RowPositions):
        return True
    if positions is None:
        return "t5" in model.config.model_type or model.config.model_type == "switch_transformers"
    table = _table(positions)
    if table is None:
        return False
    decoder.embed_positions = _RowPositions(positions, *table)
    return True


class _RowPositions(nn.Module):
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
        usual: Tensor = self.usual(*arguments, **named)  # May lengthen its table.
        rows = _rows.get()
        if rows is None:
            return usual
        vectors: Tensor = getattr(self.usual, self._table)[rows + self._first]
        return vectors.unsqueeze(1).to(usual.dtype)


def _table(positions: Any) -> tuple[str, int] | None:
    """Where the vectors stand in a module that looks positions up; None for one we do not know."""
    if isinstance(positions, nn.Embedding):  # BART, mBART, Marian, Pegasus
        return "weight", int(getattr(positions, "offset", 0))
    if hasattr(positions, "weights") and getattr(positions, "padding_idx", None) is not None:
        return "weights", int(positions.padding_idx) + 1  # M2M100 and NLLB
    return None
