"""A Redis Cluster as one store: a pipeline to each master, keys to where their slot is.

The cluster's table is read by a background task, every few seconds and whenever a node says that a
slot is elsewhere or does not answer; until it has been read again, what is elsewhere is a miss.
Redirections are not followed: the lookup would take two round trips, and the answer is computed as
well by then.
"""

import asyncio
import logging
from binascii import crc_hqx
from functools import partial
from typing import Any, Final

from sluice_gateway import redis_commands
from sluice_gateway.redis_address import Address
from sluice_gateway.redis_link import Failure, OnReplies
from sluice_gateway.redis_pipeline import BUDGET_SECONDS, PAUSES_SECONDS, RedisPipeline
from sluice_gateway.redis_places import Cluster, Fixed, Slots, parse_place, read_slots
from sluice_gateway.redis_store import START_SECONDS, Faults, Store, wait_at_most

SLOTS: Final = 16384
REFRESH_SECONDS: Final = 10.0
URGENT_SECONDS: Final = 0.2
"""Between two readings of the table at least."""
ILL_SECONDS: Final = 1.0
"""Between two readings while a node does not answer."""
_PING: Final = redis_commands.command("PING")
"""A key to read would be on one of the nodes only."""

_log = logging.getLogger(__name__)


def open_store(
    url: str,
    *,
    faults: Faults,
    budget_seconds: float = BUDGET_SECONDS,
    pauses_seconds: tuple[float, ...] = PAUSES_SECONDS,
) -> Store:
    """The store behind ``url``, not started; see :func:`parse_place`. Raises ValueError."""
    place = parse_place(url)
    options: dict[str, Any] = {"budget_seconds": budget_seconds, "pauses_seconds": pauses_seconds}
    if isinstance(place, Cluster):
        return RedisCluster(place, faults=faults, **options)
    return RedisPipeline(place, faults=faults, **options)


def slot_of(key: bytes) -> int:
    """The slot of ``key``: of what stands in its first braces, if anything does."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


class RedisCluster:
    """All masters of one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        faults: Faults,
        budget_seconds: float = BUDGET_SECONDS,
        pauses_seconds: tuple[float, ...] = PAUSES_SECONDS,
    ) -> None:
        self._cluster = cluster
        self._faults = faults
        self._make = partial(
            RedisPipeline,
            faults=faults,
            budget_seconds=budget_seconds,
            pauses_seconds=pauses_seconds,
            probe=_PING,
            on_moved=self._look_again,
        )
        self._nodes: dict[tuple[str, int], RedisPipeline] = {}
        self._slots: list[RedisPipeline | None] = [None] * SLOTS
        self._again = asyncio.Event()
        self._read_once = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        up = sum(node.up for node in self._nodes.values())
        return f"<RedisCluster {self._cluster.shown} {up} of {len(self._nodes)} nodes up>"

    async def start(self, seconds: float = START_SECONDS) -> None:
        """Begin to connect; returns after the first attempt, or after so many seconds."""
        self._keeper = asyncio.create_task(self._keep(), name="redis cluster keeper")
        await wait_at_most(self._read_once, seconds)

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        nodes, self._nodes = self._nodes, {}
        self._slots = [None] * SLOTS
        await asyncio.gather(*(node.close() for node in nodes.values()))

    @property
    def up(self) -> bool:
        """Some node answers in time."""
        return any(node.up for node in self._nodes.values())

    @property
    def takes_writes(self) -> bool:
        return any(node.takes_writes for node in self._nodes.values())

    def get(self, keys: list[bytes], on_replies: OnReplies) -> None:
        places: dict[RedisPipeline | None, list[int]] = {}
        for index, key in enumerate(keys):
            places.setdefault(self._slots[slot_of(key)], []).append(index)
        if len(places) == 1:
            ((node, _),) = places.items()
            if node is not None:
                node.get(keys, on_replies)
                return
        gathering = _Gathering(len(keys), len(places), on_replies)
        for node, indexes in places.items():
            if node is None:
                self._faults("down")
                gathering.take(indexes, Failure("down"))
            else:
                node.get([keys[index] for index in indexes], partial(gathering.take, indexes))

    def set(self, key: bytes, value: bytes, ttl_seconds: float) -> None:
        node = self._slots[slot_of(key)]
        if node is None:
            self._faults("down")
        else:
            node.set(key, value, ttl_seconds)

    def call(self, key: bytes, commands: list[bytes], on_replies: OnReplies) -> None:
        node = self._slots[slot_of(key)]
        if node is None:
            self._faults("down")
            on_replies(Failure("down"))
        else:
            node.call(key, commands, on_replies)

    def distrust(self, key: bytes) -> None:
        node = self._slots[slot_of(key)]
        if node is not None:
            node.distrust(key)

    async def locate(self, key: bytes) -> Address:
        node = self._slots[slot_of(key)]
        if node is None:
            raise OSError("no node serves the slot")
        return await node.locate(key)

    # The table ------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        self._again.set()

    async def _keep(self) -> None:
        """Follow the cluster's table until cancelled."""
        while True:
            self._again.clear()
            slots = await self._read()
            if slots is not None:
                await self._follow(slots)
            self._read_once.set()
            await asyncio.sleep(URGENT_SECONDS)
            well = slots and all(node.up for node in self._nodes.values())
            await wait_at_most(self._again, REFRESH_SECONDS if well else ILL_SECONDS)

    async def _read(self) -> Slots | None:
        """The table, from whichever node answers first; None when none does."""
        for host, port in dict.fromkeys((*self._nodes, *self._cluster.seeds)):
            try:
                slots = await read_slots(self._cluster, host, port)
            except OSError:
                continue
            if slots:
                return slots
        return None

    async def _follow(self, slots: Slots) -> None:
        wanted = {node for _, _, node in slots}
        gone = {where: node for where, node in self._nodes.items() if where not in wanted}
        came = wanted - self._nodes.keys()
        for where in came:
            self._nodes[where] = self._make(Fixed(self._cluster.node(*where)))
        for where in gone:
            del self._nodes[where]
        table: list[RedisPipeline | None] = [None] * SLOTS
        for first, last, where in slots:
            table[first : last + 1] = [self._nodes[where]] * (last + 1 - first)
        self._slots = table
        if came or gone:
            _log.info("redis cluster", extra={"nodes": [f"{host}:{port}" for host, port in wanted]})
        await asyncio.gather(
            *(self._nodes[where].start() for where in came),
            *(node.close() for node in gone.values()),
        )


class _Gathering:
    """The replies of several nodes to one lookup, put in the order of its keys."""

    __slots__ = ("_missing", "_on_replies", "_replies")

    def __init__(self, count: int, nodes: int, on_replies: OnReplies) -> None:
        self._replies: list[Any] = [None] * count
        self._missing = nodes
        self._on_replies = on_replies

    def take(self, indexes: list[int], replies: list[Any] | Failure) -> None:
        for place, index in enumerate(indexes):
            self._replies[index] = replies if isinstance(replies, Failure) else replies[place]
        self._missing -= 1
        if not self._missing:
            self._on_replies(self._replies)
