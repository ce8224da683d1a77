"""Keys and values on an accelerator: pages of a pool, shared by sequences that begin the same.

torch's ``varlen_attn`` reads a packed step straight from the pool by a table of pages, so prompts
and single tokens are one call. The bookkeeping is tested with a stand-in for that kernel, which
needs CUDA; **on a device this file has never run**.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from sluice_worker.engines.decoder.attention import LayerShape, Look
from sluice_worker.engines.decoder.store import LayerTensors, Opened, Row, block_names

PAGE_TOKENS = 256


class PagedStore:
    """Implements :class:`sluice_worker.engines.decoder.store.Store`.

    Args:
        attend: torch's ``varlen_attn``, or what stands in for it.
    """

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        *,
        room: int,
        dtype: torch.dtype,
        device: torch.device,
        page_tokens: int = PAGE_TOKENS,
        attend: Callable[..., Any] = varlen_attn,
    ) -> None:
        pages = max(1, room // page_tokens)
        self.page_tokens = page_tokens
        self.room = pages * page_tokens
        self.layers = {
            layer: LayerTensors(
                torch.zeros(pages, page_tokens, s.heads, s.key_size, dtype=dtype, device=device),
                torch.zeros(pages, page_tokens, s.heads, s.value_size, dtype=dtype, device=device),
            )
            for layer, s in shapes.items()
        }
        self._attend = attend
        self._device = device
        self._users = [0] * pages
        self._free = list(reversed(range(pages)))
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Pages that nobody uses but that can be found, the longest unused first."""
        self._names: dict[int, bytes] = {}
        self._found: dict[bytes, int] = {}
        self.tables: dict[int, list[int]] = {}
        self._chains: dict[int, list[bytes]] = {}
        self._salts: dict[int, bytes] = {}
        self._places = 0

    def __repr__(self) -> str:
        return f"<PagedStore {self.used} of {self.room} tokens, {len(self._kept)} pages kept>"

    @property
    def used(self) -> int:
        return (len(self._users) - len(self._free) - len(self._kept)) * self.page_tokens

    def open(self, ids: Sequence[int], salt: bytes) -> Opened | None:
        table: list[int] = []
        chain: list[bytes] = []
        for name in block_names(ids[: len(ids) - 1], salt, self.page_tokens):
            if name not in self._found:
                break
            table.append(self._found[name])
            chain.append(name)
        for page in table:
            self._kept.pop(page, None)
            self._users[page] += 1
        self._places += 1
        place = self._places
        self.tables[place], self._chains[place], self._salts[place] = table, chain, salt
        cached = len(table) * self.page_tokens
        if not self.reserve(place, cached + 1):
            self.close(place)
            return None
        return Opened(place, cached)

    def reserve(self, place: int, tokens: int) -> bool:
        table = self.tables[place]
        missing = -(-tokens // self.page_tokens) - len(table)
        if missing > len(self._free) + len(self._kept):
            return False
        for _ in range(missing):
            if not self._free:
                page, _ = self._kept.popitem(last=False)
                del self._found[self._names.pop(page)]
                self._free.append(page)
            page = self._free.pop()
            self._users[page] = 1
            table.append(page)
        return True

    def record(self, place: int, ids: Sequence[int], computed: int) -> None:
        chain, table = self._chains[place], self.tables[place]
        if computed // self.page_tokens > len(chain):
            for name in block_names(ids[:computed], self._salts[place], self.page_tokens, [*chain]):
                page = table[len(chain)]
                chain.append(name)
                if name not in self._found:
                    self._found[name] = page
                    self._names[page] = name

    def close(self, place: int) -> None:
        del self._chains[place], self._salts[place]
        for page in reversed(self.tables.pop(place)):  # A beginning outlives what follows it.
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._names:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def step(self, rows: Sequence[Row]) -> "PagedStep":
        return PagedStep(self, rows, self._attend, self._device)


class PagedStep:
    """Implements :class:`sluice_worker.engines.decoder.attention.StepAttention`."""

    def __init__(
        self,
        store: PagedStore,
        rows: Sequence[Row],
        attend: Callable[..., Any],
        device: torch.device,
    ) -> None:
        self._layers = store.layers
        self._attend = attend
        size = store.page_tokens
        tables = [store.tables[row.place] for row in rows]
        width = max(len(table) for table in tables)
        ends = [row.start + row.count for row in rows]
        bounds = [*accumulate((row.count for row in rows), initial=0)]
        places = [
            table[at // size] * size + at % size
            for row, table in zip(rows, tables, strict=True)
            for at in range(row.start, row.start + row.count)
        ]

        def ints(values: Any, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self._places = ints(places, torch.long)
        self._table = ints([table + [0] * (width - len(table)) for table in tables])
        self._bounds, self._ends = ints(bounds), ints(ends)
        self._longest_query = max(row.count for row in rows)
        self._longest = max(ends)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        keys, values = self._layers[layer]
        keys.flatten(0, 1)[self._places] = key
        values.flatten(0, 1)[self._places] = value
        answer: Tensor = self._attend(
            query,
            keys,
            values,
            self._bounds,
            None,
            self._longest_query,
            self._longest,
            scale=look.scale,
            window_size=(-1 if look.window is None else look.window - 1, 0),
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=self._ends,
            block_table=self._table,
            num_splits=1,  # An answer does not depend on its neighbours.
        )
        return answer
