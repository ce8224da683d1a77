"""Keys and values on the CPU: a slot of contiguous memory for each sequence, nothing gathered.

A chunk of a prompt is one call of the attention kernel on a view of its slot; the single tokens of
all running sequences are one padded call on a view of all slots, in which the query heads that
share a key head are rows of one product. A slot takes memory as it is written to, and gives it back
when it is cleared.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sluice_worker.engines.decoder.attention import LayerShape, Look
from sluice_worker.engines.decoder.store import LayerTensors, Opened, Row, block_names
from sluice_worker.engines.lazy_memory import LazyMemory

BLOCK_TOKENS = 16
ROW_COST_TOKENS = 128
"""What a call of the kernel costs beside its work, in padded tokens that it could compute."""


class SlotStore:
    """Implements :class:`sluice_worker.engines.decoder.store.Store`.

    Args:
        shapes: what each layer stores of a token.
        slots: sequences at once.
        length: tokens of a slot.
        room: tokens of all slots together, whatever their number.
    """

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        *,
        slots: int,
        length: int,
        room: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.room = room
        self.length = min(length, room)
        self._memory = LazyMemory(slots)
        self.layers = {
            layer: LayerTensors(
                self._memory.tensor((self.length, shape.heads, shape.key_size), dtype),
                self._memory.tensor((self.length, shape.heads, shape.value_size), dtype),
            )
            for layer, shape in shapes.items()
        }
        self._empty = list(reversed(range(slots)))
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Closed slots in which something can be found, the longest unused first."""
        self._tokens = [0] * slots
        """Reserved in an open slot, kept in a closed one."""
        self._salts: dict[int, bytes] = {}
        self._names: list[list[bytes]] = [[] for _ in range(slots)]
        self._found: dict[bytes, tuple[int, int]] = {}
        """Name of a block → a slot and how many tokens of it that block completes."""

    def __repr__(self) -> str:
        return (
            f"<SlotStore {self.used} of {self.room} tokens in {len(self._salts)} slots, "
            f"{len(self._kept)} kept>"
        )

    @property
    def used(self) -> int:
        return sum(self._tokens[slot] for slot in self._salts)

    def open(self, ids: Sequence[int], salt: bytes) -> Opened | None:
        source, cached = self._find(ids, salt)
        if source in self._kept and (cached > self._tokens[source] // 2 or self._free == 1):
            slot = source
            del self._kept[slot]
            self._forget(slot, cached)
        elif self._free:
            slot = self._free_slot(beside=source)
            self._copy(source, slot, cached)
        else:
            return None
        self._salts[slot] = salt
        self._tokens[slot] = 0
        if not self.reserve(slot, cached + 1):
            self.close(slot)
            return None
        return Opened(slot, cached)

    def reserve(self, place: int, tokens: int) -> bool:
        more = tokens - self._tokens[place]
        if more <= 0:
            return True
        if tokens > self.length:
            return False
        while self.used + sum(self._tokens[slot] for slot in self._kept) + more > self.room:
            if not self._kept:
                return False
            self._clear(next(iter(self._kept)))
        self._tokens[place] = tokens
        return True

    def record(self, place: int, ids: Sequence[int], computed: int) -> None:
        names = self._names[place]
        if computed // BLOCK_TOKENS > len(names):
            for name in block_names(ids[:computed], self._salts[place], BLOCK_TOKENS, [*names]):
                names.append(name)
                self._found.setdefault(name, (place, len(names) * BLOCK_TOKENS))

    def close(self, place: int) -> None:
        del self._salts[place]
        self._tokens[place] = len(self._names[place]) * BLOCK_TOKENS
        for number, name in enumerate(self._names[place]):  # Whose first finder may be gone.
            self._found.setdefault(name, (place, (number + 1) * BLOCK_TOKENS))
        self._kept[place] = None
        if not self._tokens[place]:
            self._clear(place)

    def step(self, rows: Sequence[Row]) -> "SlotStep":
        return SlotStep(self.layers, rows)

    @property
    def _free(self) -> int:
        return len(self._empty) + len(self._kept)

    def _find(self, ids: Sequence[int], salt: bytes) -> tuple[int, int]:
        """The slot that holds most of the beginning of ``ids``, and how much; -1 for none."""
        best = (-1, 0)
        for name in block_names(ids[: len(ids) - 1], salt, BLOCK_TOKENS):
            if name not in self._found:
                break
            best = self._found[name]
        return best

    def _free_slot(self, *, beside: int) -> int:
        if not self._empty:
            self._clear(next(slot for slot in self._kept if slot != beside))
        return self._empty.pop()

    def _copy(self, source: int, slot: int, tokens: int) -> None:
        if tokens:
            for layer in self.layers.values():
                for tensor in layer:
                    tensor[slot, :tokens] = tensor[source, :tokens]
        self._names[slot] = self._names[source][: tokens // BLOCK_TOKENS]

    def _forget(self, slot: int, tokens: int) -> None:
        """Let only the first ``tokens`` of a slot be found."""
        names = self._names[slot]
        for name in names[tokens // BLOCK_TOKENS :]:
            if self._found.get(name, (-1, 0))[0] == slot:
                del self._found[name]
        del names[tokens // BLOCK_TOKENS :]

    def _clear(self, slot: int) -> None:
        """Empty a kept slot, and give its memory back to the system."""
        del self._kept[slot]
        self._forget(slot, 0)
        self._tokens[slot] = 0
        self._empty.append(slot)
        self._empty.sort(reverse=True)  # The lowest are used first: attention then has few gaps.
        self._memory.give_back(slot)


class SlotStep:
    """Implements :class:`sluice_worker.engines.decoder.attention.StepAttention`."""

    def __init__(self, layers: Mapping[int, LayerTensors], rows: Sequence[Row]) -> None:
        self._layers = layers
        self._slots = torch.tensor([row.place for row in rows for _ in range(row.count)])
        self._places = torch.tensor([position for row in rows for position in row.positions])
        paired = list(zip(rows, accumulate((row.count for row in rows), initial=0), strict=False))
        small = [pair for pair in paired if pair[0].start > 0 and pair[0].count <= 8]
        self._padded = _Padded([row for row, _ in small], [at for _, at in small])
        self._alone = [pair for pair in paired if pair not in small or not self._padded.pays]
        self._masks: dict[tuple[Row, int | None], Tensor | None] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        keys, values = self._layers[layer]
        keys[self._slots, self._places] = key
        values[self._slots, self._places] = value
        output = query.new_empty(query.shape[0], query.shape[1], values.shape[3])
        if self._padded.pays:
            self._padded.attend(query, keys, values, output, look)
        for row, begin in self._alone:
            part = slice(begin, begin + row.count)
            output[part] = _attend_one(
                query[part],
                keys[row.place, : row.end].transpose(0, 1),
                values[row.place, : row.end].transpose(0, 1),
                self._mask(row, look.window),
                look.scale,
            )
        return output

    def _mask(self, row: Row, window: int | None) -> Tensor | None:
        """None where the kernel's own causal mask is right."""
        if (row, window) not in self._masks:
            asked = torch.arange(row.start, row.end)[:, None]
            plain = row.start == 0 and (window is None or window >= row.end)
            mask = None if plain else _visible(torch.arange(row.end)[None], asked, window)
            self._masks[row, window] = mask
        return self._masks[row, window]


def _attend_one(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """``[n, heads, size]`` against ``[kv_heads, length, size]`` → ``[n, heads, value_size]``."""
    answer = scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        keys.unsqueeze(0),
        values.unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != keys.shape[0],
    )
    return answer[0].transpose(0, 1)


class _Padded:
    """Few tokens of many sequences at once, each slot of the range a row of the kernel's batch."""

    def __init__(self, rows: Sequence[Row], begins: Sequence[int]) -> None:
        self._rows = rows
        ends = [row.end for row in rows]
        self._first = min((row.place for row in rows), default=0)
        self._slots = max((row.place for row in rows), default=-1) + 1 - self._first
        self._length = max(ends, default=0)
        self._width = max((row.count for row in rows), default=0)
        self.pays = len(rows) > 1 and self._slots * self._length <= 2 * sum(
            end + ROW_COST_TOKENS for end in ends
        )
        self._tokens = torch.tensor(
            [begin + at for row, begin in zip(rows, begins, strict=True) for at in range(row.count)]
        )
        self._at_slot = torch.tensor(
            [row.place - self._first for row in rows for _ in range(row.count)]
        )
        self._at_column = torch.tensor([at for row in rows for at in range(row.count)])
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, output: Tensor, look: Look
    ) -> None:
        heads, size = query.shape[1:]
        kv_heads = keys.shape[2]
        group = heads // kv_heads
        span = slice(self._first, self._first + self._slots)
        rows = query.new_zeros(self._slots, self._width, heads, size)
        rows[self._at_slot, self._at_column] = query[self._tokens]
        # The heads of a group are neighbours: [slots, width, kv, group] → [slots, kv, group·width].
        packed = rows.view(self._slots, self._width, kv_heads, group, size).permute(0, 2, 3, 1, 4)
        answer = scaled_dot_product_attention(
            packed.reshape(self._slots, kv_heads, group * self._width, size),
            keys[span, : self._length].transpose(1, 2),
            values[span, : self._length].transpose(1, 2),
            attn_mask=self._mask(look.window, group, query.dtype),
            scale=look.scale,
        )
        answer = answer.view(self._slots, kv_heads, group, self._width, -1).permute(0, 3, 1, 2, 4)
        found = answer[self._at_slot, self._at_column]
        output[self._tokens] = found.reshape(len(self._tokens), heads, -1)

    def _mask(self, window: int | None, group: int, dtype: torch.dtype) -> Tensor:
        """Added to the scores: ``[slots, 1, group · width, length]``, or one row for all heads."""
        if window not in self._masks:
            asked = torch.zeros(self._slots, self._width, dtype=torch.long)
            for row in self._rows:
                columns = torch.arange(self._width).clamp(max=row.count - 1)
                asked[row.place - self._first] = row.start + columns
            seen = _visible(torch.arange(self._length), asked[:, None, :, None], window)
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
            if self._width > 1:
                mask = mask.repeat(1, 1, group, 1)
            self._masks[window] = mask
        return self._masks[window]


def _visible(places: Tensor, asked: Tensor, window: int | None) -> Tensor:
    """What the token at each of ``asked`` may look at."""
    seen = places <= asked
    return seen if window is None else seen & (places > asked - window)
