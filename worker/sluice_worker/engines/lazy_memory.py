"""Tensors in memory that costs what was written to it, and that can be given back in parts.

torch's own allocator keeps what it once had; a store of keys and values is made for the most that
may ever come, and is mostly empty.
"""

import mmap
from math import prod

import torch
from torch import Tensor

_MAP_NORESERVE = 0x4000
"""Of Linux: what is mapped but never written counts for nothing."""


class LazyMemory:
    """Of several tensors, each of as many shares along its first dimension.

    Args:
        shares: that can be given back one by one.
    """

    def __init__(self, shares: int) -> None:
        self._shares = shares
        self._maps: list[mmap.mmap] = []

    def __repr__(self) -> str:
        return f"<LazyMemory of {len(self._maps)} tensors in {self._shares} shares>"

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """``[shares, *shape]``, of zeros."""
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        memory = mmap.mmap(-1, self._shares * prod(shape) * dtype.itemsize, flags=private)
        self._maps.append(memory)
        return torch.frombuffer(memory, dtype=dtype).view(self._shares, *shape)

    def give_back(self, share: int) -> None:
        """Let the system have the memory of one share of every tensor; it may then hold zeros."""
        for memory in self._maps:
            size = len(memory) // self._shares
            begin = -(-share * size // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (share + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
            if end > begin:
                memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)
