"""Texts of many lengths laid end to end: one row of tokens without any padding.

Texts are sorted by length, so that those of equal length stand together: each such group is a plain
dense block, and whatever needs to know where a text begins and ends (attention, pooling) is one
ordinary tensor operation per group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
import torch
from torch import Tensor

from sluice_worker.engines.base import Unit


@dataclass(frozen=True, slots=True)
class Group:
    """``count`` texts of ``length`` tokens each, from row ``start`` on; texts from ``first`` on."""

    start: int
    count: int
    length: int
    first: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)

    @property
    def texts(self) -> slice:
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as the networks take it. T tokens of N texts.

    Attributes:
        ids: token ids ``[T]``, int64.
        positions: position within the text, from 0, ``[T]``, int64.
        type_ids: token type ids ``[T]``, int64, or None where all are 0.
        starts: row of each text's first token ``[N]``, int64.
        groups: texts of equal length, shortest first.
        order: ``order[i]`` is the place in the caller's list of the i-th text here.
    """

    ids: Tensor
    positions: Tensor
    type_ids: Tensor | None
    starts: Tensor
    groups: tuple[Group, ...]
    order: tuple[int, ...]


def pack(units: Sequence[Unit], device: torch.device) -> Packed:
    """Lay ``units`` end to end, shortest first."""
    order = tuple(sorted(range(len(units)), key=lambda index: units[index].tokens))
    texts = [units[index] for index in order]
    lengths = np.fromiter((unit.tokens for unit in texts), np.int64, len(texts))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    total = int(ends[-1])
    ids = np.fromiter(chain.from_iterable(unit.ids for unit in texts), np.int64, total)
    positions = np.arange(total) - np.repeat(starts, lengths)
    return Packed(
        ids=_tensor(ids, device),
        positions=_tensor(positions, device),
        type_ids=_type_ids(texts, total, device),
        starts=_tensor(starts, device),
        groups=_groups(lengths.tolist()),
        order=order,
    )


def _groups(lengths: list[int]) -> tuple[Group, ...]:
    groups = []
    start = first = 0
    for length, members in groupby(lengths):
        count = sum(1 for _ in members)
        groups.append(Group(start, count, length, first))
        start += count * length
        first += count
    return tuple(groups)


def _type_ids(texts: list[Unit], total: int, device: torch.device) -> Tensor | None:
    if all(unit.type_ids is None for unit in texts):
        return None
    rows = (unit.type_ids or (0,) * unit.tokens for unit in texts)
    return _tensor(np.fromiter(chain.from_iterable(rows), np.int64, total), device)


def _tensor(values: "np.typing.NDArray[np.int64]", device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)
