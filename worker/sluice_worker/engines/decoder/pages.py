"""Keys and values on an accelerator: pages of a pool, shared by sequences that begin the same.

torch's ``varlen_attn`` reads a packed step straight from the pool by a table of pages, so prompts
and single tokens are one call. The bookkeeping is tested with a stand-in for that kernel, which
needs CUDA; **on a device this file has never run**. One page beyond the pool belongs to nobody:
what fills a step up to a fixed size (``graphs``) writes there.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from sluice_worker.engines.decoder.attention import LayerShape, Look, NotServed
from sluice_worker.engines.decoder.store import LayerTensors, Opened, Row, block_names
from sluice_worker.models.errors import ModelRejected

PAGE_TOKENS = 256
NOBODYS = 0
"""The place of rows that only fill a step up; its one page is found in no other table."""


def check_device(
    shapes: Mapping[int, LayerShape], *, dtype: torch.dtype, capability: tuple[int, int]
) -> None:
    """Refuse what the kernel does not take: see ``mha_varlen_fwd`` of torch's ``flash_api.cpp``.

    Args:
        capability: of the device, as NVIDIA numbers them.

    Raises:
        ModelRejected: the numbers or the device are not made for it.
        NotServed: the architecture is not.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        raise ModelRejected(
            f"model.dtype: got {name}; on a GPU, text is generated in float16 or bfloat16. "
            "Set one of these or auto, or hardware.device to cpu."
        )
    if capability < (8, 0):
        got = ".".join(map(str, capability))
        raise ModelRejected(
            f"hardware.device: got a GPU of compute capability {got}; text is generated on 8.0 "
            "(Ampere) or newer. Set hardware.gpu.product to a newer one, or hardware.device to cpu."
        )
    for shape in shapes.values():
        if shape.key_size != shape.value_size or shape.key_size % 8 or shape.key_size > 256:
            raise NotServed(
                f"on a GPU, keys and values of a head have one size, a multiple of 8 up to 256; "
                f"got {shape.key_size} and {shape.value_size}"
            )


class PagedStore:
    """Implements :class:`sluice_worker.engines.decoder.store.Store`."""

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        *,
        room: int,
        dtype: torch.dtype,
        device: torch.device,
        page_tokens: int = PAGE_TOKENS,
    ) -> None:
        pages = max(1, room // page_tokens)
        self.page_tokens = page_tokens
        self.room = pages * page_tokens
        self.layers = {
            layer: LayerTensors(
                *(
                    torch.zeros(pages + 1, page_tokens, s.heads, size, dtype=dtype, device=device)
                    for size in (s.key_size, s.value_size)
                )
            )
            for layer, s in shapes.items()
        }
        self.device = device
        self._users = [0] * pages
        self._free = list(reversed(range(pages)))
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Pages that nobody uses but that can be found, the longest unused first."""
        self._names: dict[int, bytes] = {}
        self._found: dict[bytes, int] = {}
        self.tables: dict[int, list[int]] = {NOBODYS: [pages]}
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
        ends = [row.end for row in rows]
        tables = [self.tables[row.place] for row in rows]
        width = max(len(table) for table in tables)

        def ints(values: Any, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)

        return PagedStep(
            self,
            places=ints([at for row in rows for at in self.places(row)], torch.long),
            table=ints([table + [0] * (width - len(table)) for table in tables]),
            bounds=ints([*accumulate((row.count for row in rows), initial=0)]),
            reaches=ints([*accumulate(ends, initial=0)]),
            ends=ints(ends),
            longest_query=max(row.count for row in rows),
            longest=max(ends),
        )

    def places(self, row: Row) -> list[int]:
        """Where in the pool the tokens of ``row`` stand."""
        table, size = self.tables[row.place], self.page_tokens
        return [table[at // size] * size + at % size for at in row.positions]


@dataclass(frozen=True, slots=True, repr=False)
class PagedStep:
    """Implements :class:`sluice_worker.engines.decoder.attention.StepAttention`.

    Attributes:
        places: where the new keys and values go, ``[T]``.
        table: the pages of each row, ``[rows, width]``.
        bounds: where each row begins among the tokens, and the end, ``[rows + 1]``.
        reaches: where each row would begin among all keys laid end to end, and the end,
            ``[rows + 1]``; the kernel goes by ``ends``, but takes no ``bounds`` without these.
        ends: tokens that each row has, the new ones included, ``[rows]``.
        longest_query, longest: no row has more new tokens, or more in all.
    """

    store: PagedStore
    places: Tensor
    table: Tensor
    bounds: Tensor
    reaches: Tensor
    ends: Tensor
    longest_query: int
    longest: int

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        keys, values = self.store.layers[layer]
        keys.flatten(0, 1)[self.places] = key
        values.flatten(0, 1)[self.places] = value
        answer = varlen_attn(
            query,
            keys,
            values,
            self.bounds,
            self.reaches,
            self.longest_query,
            self.longest,
            scale=look.scale,
            window_size=(-1 if look.window is None else look.window - 1, 0),
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=self.ends,
            block_table=self.table,
            num_splits=1,  # An answer does not depend on its neighbours.
        )
        assert isinstance(answer, Tensor), "only asked for the answer itself"
        return answer
