"""A streamed answer on its way: CPU time per event, time to the first, gaps between them.

Streams of 200 events, one each 10 ms, over keep-alive connections; the subject has a core to
itself. Ours runs with everything it has (key, limits, metrics, request ids, usage taken out);
the calls are sampled, so nothing is looked up, shared or stored. nginx and HAProxy pass bytes on
unbuffered. LiteLLM gets 8 streams instead of 100, which is what it can carry.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import uvloop
from measure import LOAD_CORE, Process, Unavailable, free_port, listening
from peers.proxies import (
    CHAT,
    LITELLM,
    SGLANG_ROUTER,
    SLUICE_OFF,
    VLLM_ROUTER,
    Subject,
    direct,
    haproxy,
    litellm,
    nginx_stream,
    readiness,
    sglang_router,
    sluice,
    vllm_router,
)

from sluice_api.tasks import Task

EVENTS, PACE = 200, 0.01
BODY = json.dumps(
    {
        "model": "bench",
        "messages": [{"role": "user", "content": "Go on."}],
        "temperature": 1,
        "stream": True,
    }
)


@dataclass
class Peer:
    """One line of the table; lists hold a value for each round, times in milliseconds.

    Attributes:
        streams: at once; 0: as many as asked for on the command line.
    """

    name: str
    start: Callable[[], AbstractContextManager[Subject]]
    streams: int = 0
    rounds: int = 1_000
    costs: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    first_p50: list[float] = field(default_factory=list)
    first_p99: list[float] = field(default_factory=list)
    gap_p99: list[float] = field(default_factory=list)
    memory: float = 0
    broken: int = 0
    missing: str = ""

    def told(self) -> dict[str, Any]:
        """For the file of results."""
        return {
            "name": self.name, "cpu_us": self.costs, "rates": self.rates,
            "first_p50_ms": self.first_p50, "first_p99_ms": self.first_p99,
            "gap_p99_ms": self.gap_p99, "memory_mib": self.memory, "broken": self.broken,
            "missing": self.missing,
        }  # fmt: skip


class Seen:
    """What all readers of one run have seen, from :meth:`begin` on."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.begin()

    def begin(self) -> None:
        self.events = 0
        self.broken = 0
        self.first = array("d")
        self.gaps = array("d")


class Reader(asyncio.Protocol):
    """Asks for one stream after the other."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.received = 0
        self.last = time.perf_counter()
        self.transport.write(self.seen.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        seen, found = self.seen, data.count(b"data: ")
        if found:
            now = time.perf_counter()
            (seen.gaps if self.received else seen.first).append(now - self.last)
            self.last = now
        self.received += found
        seen.events += found
        if data.endswith(b"0\r\n\r\n"):
            seen.broken += self.received < EVENTS
            self.ask()


async def load(peer: Peer, subject: Subject, streams: int, seconds: float) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in subject.headers.items())
    seen = Seen(
        f"POST {CHAT} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{lines}"
        f"content-length: {len(BODY)}\r\n\r\n{BODY}".encode()
    )
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(streams):
        made.append(await loop.create_connection(lambda: Reader(seen), "127.0.0.1", subject.port))
        await asyncio.sleep(1.0 / streams)  # Not all ends and beginnings at one instant.
    await asyncio.sleep(1)
    seen.begin()
    cpu, began = subject.process.cpu_seconds(), time.monotonic()
    await asyncio.sleep(seconds)
    cpu, spent = subject.process.cpu_seconds() - cpu, time.monotonic() - began
    for transport, _ in made:
        transport.abort()
    peer.costs.append(cpu / max(1, seen.events) * 1e6)
    peer.rates.append(seen.events / spent)
    peer.broken += seen.broken
    if seen.first:
        peer.first_p50.append(_share(seen.first, 0.50) * 1e3)
        peer.first_p99.append(_share(seen.first, 0.99) * 1e3)
    if seen.gaps:
        peer.gap_p99.append(_share(seen.gaps, 0.99) * 1e3)


def _share(values: "array[float]", share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def peers_of(worker: str) -> list[Peer]:
    workers = [worker]
    return [
        Peer("direct", lambda: direct(workers)),
        Peer("nginx, unbuffered", lambda: nginx_stream(workers)),
        Peer("HAProxy, no delay", lambda: haproxy(workers)),
        Peer("Sluice", lambda: sluice(workers, path=CHAT)),
        Peer(f"{VLLM_ROUTER} (Rust)", lambda: vllm_router(workers)),
        Peer(f"{SGLANG_ROUTER} (Rust)", lambda: sglang_router(workers)),
        Peer(LITELLM, lambda: litellm(workers, CHAT), streams=8, rounds=1),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--only", default="", help="measure peers whose name contains this")
    options = parser.parse_args(arguments)
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    server = Path(__file__).parent / "peers" / "event_server.py"
    port = free_port()
    ready = readiness(Task.CHAT)
    command = [sys.executable, str(server), str(port), str(EVENTS), str(PACE), ready]
    chosen = [peer for peer in peers_of(f"127.0.0.1:{port}") if options.only in peer.name]
    try:
        with Process(command, LOAD_CORE) as events:
            events.wait_for(listening(port))
            _run(chosen, options.rounds, options.streams, options.seconds)
    finally:
        os.sched_setaffinity(0, affinity)
    _tell(chosen, options.streams)
    told = [peer.told() for peer in chosen]
    measure.save("streams", {"peers": told, "streams": options.streams, "off": SLUICE_OFF})


def _run(peers: list[Peer], rounds: int, streams: int, seconds: float) -> None:
    for number in range(rounds):
        for peer in peers:
            if number >= peer.rounds or peer.missing:
                continue
            print(f"  · round {number + 1} of {rounds}: {peer.name}", file=sys.stderr)
            try:
                with peer.start() as subject:
                    uvloop.run(load(peer, subject, peer.streams or streams, seconds))
                    peer.memory = max(peer.memory, subject.process.memory_mib())
            except Unavailable as why:
                peer.missing = str(why)
                print(f"▸ left out: {peer.name}: {why}", file=sys.stderr)


def _tell(peers: list[Peer], streams: int) -> None:
    had = [peer for peer in peers if peer.costs]
    base = next((measure.median(p.costs) for p in had if p.name.startswith("nginx")), None)
    gap = next((measure.median(p.gap_p99) for p in had if p.name == "direct" and p.gap_p99), None)
    measure.table(
        f"Streams: one core, {streams} at once, an event each {PACE * 1000:.0f} ms",
        [
            "path", "µs CPU/event", "range", "× nginx", "events/s", "first p50/p99 ms",
            "gap p99 ms", "added", "MiB", "broken",
        ],
        [
            [
                peer.name,
                f"{measure.median(peer.costs):,.1f}",
                f"{min(peer.costs):,.1f}–{max(peer.costs):,.1f}",
                f"{measure.median(peer.costs) / base:.2f}" if base else "–",
                f"{measure.median(peer.rates):,.0f}",
                f"{_median(peer.first_p50)} / {_median(peer.first_p99)}",
                _median(peer.gap_p99),
                _median([value - gap for value in peer.gap_p99] if gap else []),
                f"{peer.memory:.0f}",
                peer.broken,
            ]
            for peer in had
        ],
    )  # fmt: skip


def _median(values: list[float]) -> str:
    return f"{measure.median(values):.2f}" if values else "–"


if __name__ == "__main__":
    main()
