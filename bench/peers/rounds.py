"""Peers taken in turn: each is started, warmed and measured once a round; medians count.

A drift of the machine hits all peers of a round alike, so the ratios hold where the figures do not.
A peer that cannot be had is said to be missing and left out.
"""

import select
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import measure
from measure import Unavailable
from peers.proxies import EMBEDDINGS, Subject, body

OPEN_LOOP_CONNECTIONS = 32


@dataclass
class Peer:
    """One line of a table. Lists hold a value for each round.

    Attributes:
        start: starts it.
        script: for wrk, from the subject and a seed.
        rounds: fewer for those that take long to start and whose figure is far from the others'.
        least_seconds: for those that answer only a few requests a second.
        warm_seconds: of load before the measurement.
        idle_seconds: of rest before the load; what is used in them is no cost of requests, and is
            told by itself as a share of the core.
        rate: of requests a second at which latency is measured as well; 0: not.
    """

    name: str
    start: Callable[[], AbstractContextManager[Subject]]
    script: Callable[[Subject, int], str]
    path: str = EMBEDDINGS
    rounds: int = 1_000
    rate: int = 0
    connections: int = 32
    least_seconds: float = 0.0
    warm_seconds: float = 1.0
    idle_seconds: float = 0.0
    costs: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    paced_p50: list[float] = field(default_factory=list)
    paced_p99: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    memory: float = 0
    failed: int = 0
    missing: str = ""

    def told(self) -> dict[str, Any]:
        """For the file of results."""
        return {
            "name": self.name, "cpu_us": self.costs, "rates": self.rates, "p50_ms": self.p50,
            "p99_ms": self.p99, "paced_p50_ms": self.paced_p50, "paced_p99_ms": self.paced_p99,
            "idle_share": self.idle, "memory_mib": self.memory, "failed": self.failed,
            "missing": self.missing,
        }  # fmt: skip


def run(peers: Sequence[Peer], rounds: int, seconds: float) -> None:
    for number in range(rounds):
        for peer in peers:
            if number >= peer.rounds or peer.missing:
                continue
            print(f"  · round {number + 1} of {rounds}: {peer.name}", file=sys.stderr)
            try:
                with peer.start() as subject:
                    _measure(peer, subject, seconds, seed=10 * number)
            except Unavailable as why:
                peer.missing = str(why)
                print(f"▸ left out: {peer.name}: {why}", file=sys.stderr)


def _measure(peer: Peer, subject: Subject, seconds: float, seed: int) -> None:
    url = f"http://127.0.0.1:{subject.port}{peer.path}"
    process, connections = subject.process, peer.connections
    seconds = max(seconds, peer.least_seconds)
    warm = peer.warm_seconds
    measure.wrk(url, peer.script(subject, seed), connections=connections, seconds=warm)
    idle = _idle(process, peer.idle_seconds)
    before = process.cpu_seconds()
    script = peer.script(subject, seed + 1)
    load = measure.wrk(url, script, connections=connections, seconds=seconds)
    used = process.cpu_seconds() - before - idle * load.seconds
    peer.idle.append(idle)
    peer.costs.append(used / max(1, load.requests) * 1e6)
    peer.rates.append(load.requests / load.seconds)
    peer.p50.append(load.p50_ms)
    peer.p99.append(load.p99_ms)
    peer.failed += load.failed
    if peer.rate:
        p50, p99, failed = open_loop(subject, peer.path, peer.rate, seconds, seed + 2)
        peer.paced_p50.append(p50)
        peer.paced_p99.append(p99)
        peer.failed += failed
    peer.memory = max(peer.memory, process.memory_mib())


def _idle(process: measure.Process, seconds: float) -> float:
    """Share of a core that it takes without requests."""
    if not seconds:
        return 0.0
    before = process.cpu_seconds()
    time.sleep(seconds)
    return (process.cpu_seconds() - before) / seconds


def open_loop(
    subject: Subject, path: str, rate: int, seconds: float, seed: int
) -> tuple[float, float, int]:
    """p50 and p99 in milliseconds, and failures, of unique requests sent at a steady rate.

    A request that finds no free connection at its time counts from that time on.
    """
    free = [
        socket.create_connection(("127.0.0.1", subject.port)) for _ in range(OPEN_LOOP_CONNECTIONS)
    ]
    for connection in free:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    everybody = list(free)
    lines = "".join(f"{name}: {value}\r\n" for name, value in subject.headers.items())
    busy: dict[socket.socket, tuple[float, bytes]] = {}
    took: list[float] = []
    failed = sent = 0
    began = time.perf_counter()
    total = round(rate * seconds)
    try:
        while len(took) + failed < total:
            now = time.perf_counter()
            due = began + sent / rate
            if sent < total and now >= due and free:
                connection = free.pop()
                content = body(f"{seed} {sent}")
                connection.sendall(
                    f"POST {path} HTTP/1.1\r\nhost: b\r\ncontent-type: application/json\r\n{lines}"
                    f"cache-control: no-store\r\ncontent-length: {len(content)}\r\n\r\n{content}"
                    .encode()
                )  # fmt: skip
                late = sent and now - due > 1 / rate
                busy[connection] = (due if late else now, b"")
                sent += 1
                continue
            wait = max(0.0, due - now) if sent < total and free else 5.0
            readable = select.select(list(busy), [], [], wait)[0]
            if not readable and wait == 5.0:
                failed += len(busy)
                break
            now = time.perf_counter()
            for connection in readable:
                since, received = busy[connection]
                received += connection.recv(65536)
                if not _complete(received):
                    busy[connection] = (since, received)
                    continue
                del busy[connection]
                free.append(connection)
                if received.startswith(b"HTTP/1.1 200"):
                    took.append(now - since)
                else:
                    failed += 1
    finally:
        for connection in everybody:
            connection.close()
    if len(took) < 2:
        return float("nan"), float("nan"), failed
    cuts = statistics.quantiles(took, n=100)
    return cuts[49] * 1e3, cuts[98] * 1e3, failed


def _complete(received: bytes) -> bool:
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return False
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        return rest.endswith(b"0\r\n\r\n")
    length = lower.partition(b"content-length:")[2].split(b"\r\n")[0]
    return len(rest) >= int(length or 0)


HEADER = [
    "path", "µs CPU/req", "range", "× nginx", "req/s", "p50 ms", "p99 ms", "MiB", "failed",
]  # fmt: skip


def rows(peers: Sequence[Peer], reference: str) -> list[list[object]]:
    """Of the table with :data:`HEADER`."""
    base = next((measure.median(p.costs) for p in peers if p.name == reference and p.costs), None)
    made: list[list[object]] = []
    for peer in peers:
        if not peer.costs:
            made.append([f"{peer.name} (not had)", *["–"] * (len(HEADER) - 1)])
            continue
        cost = measure.median(peer.costs)
        made.append(
            [
                peer.name,
                f"{cost:,.1f}",
                f"{min(peer.costs):,.1f}–{max(peer.costs):,.1f}",
                f"{cost / base:.2f}" if base else "–",
                f"{measure.median(peer.rates):,.0f}",
                f"{measure.median(peer.p50):.2f}",
                f"{measure.median(peer.p99):.2f}",
                f"{peer.memory:.0f}",
                peer.failed,
            ]
        )
    return made
