"""Several real redis-servers that belong together: a Sentinel set, a cluster."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from tests.support.redis_server import Guard, RedisServer, free_port

SECONDS = 90.0
"""For a set to come together, on a machine that does other things too."""


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.02)


class SentinelSet:
    """A master with a replica, and a sentinel that makes the replica the master if need be."""

    MASTER = "cache"

    def __init__(
        self,
        first: RedisServer,
        second: RedisServer,
        sentinel: RedisServer,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard
        self.first = first
        self.second = second
        self.sentinel = sentinel

    @property
    def url(self) -> str:
        place = f"127.0.0.1:1,127.0.0.1:{self.sentinel.port}/{self.MASTER}"
        if self._guard is None:
            return f"redis+sentinel://{place}"
        password = quote(self._guard.password, safe="")
        options = f"sentinel_password={password}&{self._guard.query}"
        return f"rediss+sentinel://:{password}@{place}?{options}"

    def follow(self) -> None:
        """Wait until the sentinel knows the replica and the replica has caught up."""

        def known() -> bool:
            with self.sentinel.client() as client:
                replicas = client.execute_command("SENTINEL REPLICAS", self.MASTER)
            with self.second.client() as client:
                up = client.info("replication").get("master_link_status") == "up"
            return up and len(replicas) == 1

        wait_for(known, "a replica that the sentinel knows")


@contextmanager
def running_sentinel_set(*, guarded: bool = False) -> Iterator[SentinelSet]:
    """With ``guarded``, all take TLS with certificates on both sides, and a password."""
    with ExitStack() as stack:
        guard = _guard(stack) if guarded else None
        trust = _REPLICATION if guard is not None else ()
        folders = [Path(stack.enter_context(TemporaryDirectory(prefix="sluice"))) for _ in range(3)]
        trust += ("--masterauth", guard.password) if guard is not None else ()
        diskless = ("--repl-diskless-sync-delay", "0")
        first = RedisServer(folders[0], *diskless, *trust, guard=guard)
        stack.callback(first.close)
        first.start()
        of_first = ("--replicaof", f"127.0.0.1 {first.port}")
        second = RedisServer(folders[1], *of_first, *trust, guard=guard)
        stack.callback(second.close)
        second.start()
        # A sentinel writes into its file, which must be there.
        file = folders[2] / "sentinel.conf"
        master = SentinelSet.MASTER
        file.write_text(
            f"sentinel monitor {master} 127.0.0.1 {first.port} 1\n"
            f"sentinel down-after-milliseconds {master} 1000\n"
            f"sentinel failover-timeout {master} 5000\n"
            + (f'sentinel auth-pass {master} "{guard.password}"\n' if guard is not None else "")
        )
        sentinel = RedisServer(folders[2], *trust[:2], config=file, sentinel=True, guard=guard)
        stack.callback(sentinel.close)
        sentinel.start()
        found = SentinelSet(first, second, sentinel, guard)
        found.follow()
        yield found


class RedisNodes:
    """Three masters, each with a third of the slots, none with a replica."""

    def __init__(self, nodes: list[RedisServer], guard: Guard | None = None) -> None:
        self._guard = guard
        self.nodes = nodes

    @property
    def url(self) -> str:
        place = f"127.0.0.1:1,127.0.0.1:{self.nodes[0].port}"
        if self._guard is None:
            return f"redis+cluster://{place}"
        return (
            f"rediss+cluster://:{quote(self._guard.password, safe='')}@{place}?{self._guard.query}"
        )

    def owner(self, slot: int) -> RedisServer:
        with self.nodes[0].client() as client:
            ranges = client.execute_command("CLUSTER SLOTS")
        ports = [primary[1] for first, last, primary, *_ in ranges if first <= slot <= last]
        return next(node for node in self.nodes if [node.port] == ports)

    def move(self, slot: int) -> None:
        """Give an empty slot to another node."""
        source = self.owner(slot)
        target = next(node for node in self.nodes if node is not source)
        with target.client() as client:
            name = client.execute_command("CLUSTER MYID")
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", name)
        with source.client() as client:
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", name)

    def migrate(self, slot: int) -> None:
        """Give a slot that is in use to another node, as an operator of a cluster does."""
        source = self.owner(slot)
        target = next(node for node in self.nodes if node is not source)
        with source.client() as giving, target.client() as taking:
            before, after = (each.execute_command("CLUSTER MYID") for each in (giving, taking))
            taking.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", before)
            giving.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", after)
            while keys := giving.execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
                giving.execute_command(
                    "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys
                )
            for client in (taking, giving):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", after)


@contextmanager
def running_cluster(*, guarded: bool = False) -> Iterator[RedisNodes]:
    """With ``guarded``, all take TLS with certificates on both sides, and a password."""
    with ExitStack() as stack:
        nodes, ports = [], []
        guard = _guard(stack) if guarded else None
        for _ in range(3):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="sluice")))
            ports.append(free_port())
            node = RedisServer(
                folder,
                *("--cluster-enabled", "yes", "--cluster-port", str(ports[-1])),
                *("--cluster-node-timeout", "5000", "--cluster-require-full-coverage", "no"),
                *(("--tls-cluster", "yes") if guard is not None else ()),
                guard=guard,
            )
            stack.callback(node.close)
            node.start()
            nodes.append(node)
        for number, node in enumerate(nodes):
            first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
            with node.client() as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                if number:
                    client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                    client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port, ports[0])

        def together(node: RedisServer) -> bool:
            with node.client() as client:
                info = client.execute_command("CLUSTER INFO")
            return info["cluster_state"] == "ok" and info["cluster_slots_ok"] == "16384"

        wait_for(lambda: all(map(together, nodes)), "a cluster")
        yield RedisNodes(nodes, guard)


_REPLICATION = ("--tls-replication", "yes")


def _guard(stack: ExitStack) -> Guard:
    return Guard.make(Path(stack.enter_context(TemporaryDirectory(prefix="sluice"))))
