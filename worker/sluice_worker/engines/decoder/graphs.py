"""Steps in which every text writes one token, replayed as CUDA graphs.

A small model's step on a GPU is bound by the launches of its kernels; a graph launches them all at
once. Nothing waits for graphs: a step is computed eagerly until its size has come up often, then it
is captured, and from there on replayed. A graph has fixed tensors of a fixed size, so a step is
filled up with rows that belong to nobody (``pages``). A graph that cannot be captured, or does not
say what the eager step said, is the last one to be tried: from then on everything runs eagerly.

Only made for CUDA. Capturing is a function that is passed in, and the tests put one there that
computes anew from the same fixed tensors; **on a device this file has never run**.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from sluice_worker.engines.decoder.network import CausalNetwork, StepNetwork
from sluice_worker.engines.decoder.pages import NOBODYS, PagedStep, PagedStore
from sluice_worker.engines.decoder.store import Row, Store

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Rows of a graph. Few, because each holds memory; larger steps are not bound by their launches."""
USES = 32
"""A size is captured when it has come up this often."""
LEAST_FREE_BYTES = 1 << 30
"""Of the device's memory, what must be free to capture one more."""

Replay = Callable[[], Tensor]
"""Compute from the fixed tensors as they are now; always the same tensor comes back."""
Capture = Callable[[Replay], Replay]
"""Make a replay of what the given function computes. May raise anything."""


class GraphedNetwork:
    """Implements :class:`sluice_worker.engines.decoder.network.StepNetwork`.

    Args:
        longest: tokens of the longest text.
        capture: :func:`capture_cuda`, or what stands in for it.
        has_room: whether there is memory for one more graph.
        tolerance: largest difference from the eager logits, as a share of the largest.
    """

    def __init__(
        self,
        network: CausalNetwork,
        store: PagedStore,
        *,
        longest: int,
        capture: Capture,
        has_room: Callable[[], bool],
        tolerance: float,
        sizes: Sequence[int] = SIZES,
        uses: int = USES,
    ) -> None:
        self._network: StepNetwork = network
        self._compute = network.forward
        self._store = store
        self._width = -(-longest // store.page_tokens)
        self._capture, self._has_room, self._tolerance = capture, has_room, tolerance
        self._sizes, self._uses = sizes, uses
        self._used: Counter[int] = Counter()
        self._graphs: dict[int, tuple[_Fixed, Replay]] = {}
        self._captures: Counter[str] = Counter()

    def __repr__(self) -> str:
        state = "given up" if self._captures["failed"] else "in use"
        return f"<GraphedNetwork of {self._network!r}, sizes {sorted(self._graphs)}, {state}>"

    @property
    def captures(self) -> Mapping[str, int]:
        """``captured``, ``no_room`` and ``failed``, of which one ends all further tries."""
        return self._captures

    def step(self, store: Store, rows: Sequence[Row], ids: list[int], wanted: list[int]) -> Tensor:
        """As :meth:`StepNetwork.step`."""
        size = self._size(rows, wanted)
        if size in self._graphs:
            try:
                return self._replayed(size, rows, ids)
            except Exception:  # Whatever a device says; computed once more, nothing is lost.
                self._give_up(size, "a captured step failed")
        logits = self._network.step(store, rows, ids, wanted)
        if size:
            self._used[size] += 1
            if self._used[size] == self._uses:
                self._try(size, rows, ids, logits)
        return logits

    def _size(self, rows: Sequence[Row], wanted: Sequence[int]) -> int:
        """Of the graph for a step; 0 when it must run eagerly."""
        if self._captures["failed"] or len(wanted) != len(rows):
            return 0
        most = self._width * self._store.page_tokens
        if any(row.count != 1 or row.start >= most for row in rows):
            return 0
        return next((size for size in self._sizes if size >= len(rows)), 0)

    def _replayed(self, size: int, rows: Sequence[Row], ids: Sequence[int]) -> Tensor:
        fixed, replay = self._graphs[size]
        fixed.fill(rows, ids)
        return replay()[: len(rows)]

    def _try(self, size: int, rows: Sequence[Row], ids: Sequence[int], eager: Tensor) -> None:
        """Capture ``size`` with a step that was just computed, and hold it to what that said."""
        if not self._has_room():
            self._captures["no_room"] += 1
            log.info("no memory to capture a step", extra={"rows": size})
            return
        try:
            fixed = _Fixed(size, self._store, self._width)
            fixed.fill(rows, ids)
            replay = self._capture(
                lambda: self._compute(fixed.ids, fixed.positions, fixed.wanted, fixed.attention)
            )
            self._graphs[size] = fixed, replay
            found = self._replayed(size, rows, ids)
            scale = max(1.0, float(eager.abs().max()))
            difference = float((found - eager).abs().max()) / scale
            if not difference <= self._tolerance:  # NaN is never smaller.
                raise ValueError(f"a captured step differs by {difference:.1e}")
        except Exception:
            self._give_up(size, "a step cannot be captured")
            return
        self._captures["captured"] += 1
        log.info("step captured", extra={"rows": size})

    def _give_up(self, size: int, message: str) -> None:
        self._captures["failed"] += 1
        self._graphs.clear()
        log.exception("%s; all run eagerly from now on", message, extra={"rows": size})


class _Fixed:
    """The tensors of a graph: a step of ``size`` rows, those at the end being nobody's."""

    def __init__(self, size: int, store: PagedStore, width: int) -> None:
        def ints(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=store.device)

        self._store, self._size, self._width = store, size, width
        self.ids, self.positions = ints(1, size, dtype=torch.long), ints(1, size, dtype=torch.long)
        self.wanted = torch.arange(size, device=store.device)
        self.attention = PagedStep(
            store,
            places=ints(size, dtype=torch.long),
            table=ints(size, width),
            bounds=torch.arange(size + 1, dtype=torch.int32, device=store.device),
            reaches=ints(size + 1),
            ends=ints(size),
            longest_query=1,
            longest=width * store.page_tokens,
        )

    def fill(self, rows: Sequence[Row], ids: Sequence[int]) -> None:
        store, missing = self._store, self._size - len(rows)
        rows = [*rows, *[Row(NOBODYS, 0, 1)] * missing]
        [nobodys] = store.tables[NOBODYS]
        tables = [store.tables[row.place] for row in rows]
        for tensor, values in (
            (self.ids, [[*ids, *[0] * missing]]),
            (self.positions, [[row.start for row in rows]]),
            (self.attention.places, [place for row in rows for place in store.places(row)]),
            (self.attention.reaches, [*accumulate((row.end for row in rows), initial=0)]),
            (self.attention.ends, [row.end for row in rows]),
            (self.attention.table, [t + [nobodys] * (self._width - len(t)) for t in tables]),
        ):
            tensor.copy_(torch.tensor(values, dtype=tensor.dtype))


def capture_cuda(compute: Replay) -> Replay:
    """Capture on the calling thread; the graphs of a process share one pool of memory."""
    # What is made at the first call (workspaces, plans) must not be made while capturing.
    aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
        logits = compute()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def cuda_has_room() -> bool:
    return torch.cuda.mem_get_info()[0] >= LEAST_FREE_BYTES


@cache
def _pool() -> Any:
    return torch.cuda.graph_pool_handle()
