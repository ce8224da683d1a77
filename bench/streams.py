"""A streamed answer on its way: CPU time per event, beside nginx.

Streams of 200 events, one each 10 ms, over keep-alive connections; the subject has a core to
itself. Ours runs with everything it has (tenant, limits, metrics, request ids, usage taken out);
the calls are sampled, so nothing is looked up, shared or stored. nginx passes bytes on unbuffered.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import msgspec
import uvloop
from gateway import DIGEST, REVISION, nginx
from measure import LOAD_CORE, SUBJECT_CORE, Process, free_port, listening

from sluice_api import wire
from sluice_api.tasks import Task

EVENTS, PACE = 200, 0.01
READY = msgspec.json.encode(
    wire.Readiness(
        phase=wire.Phase.READY,
        model="file:///bench",
        revision=REVISION,
        answer_digest=DIGEST,
        tasks=[Task.CHAT],
        capacity=wire.Capacity(limit=100_000),
    )
)
BODY = json.dumps(
    {
        "model": "bench",
        "messages": [{"role": "user", "content": "Go on."}],
        "temperature": 1,
        "stream": True,
    }
).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


@dataclass
class Peer:
    """One line of the table."""

    name: str
    start: Callable[[int, int], Any]
    costs: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    memory: float = 0
    broken: int = 0


@contextlib.contextmanager
def nginx_proxy(backend: int, port: int) -> Iterator[Process]:
    body = f"""
  upstream workers {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://workers; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; }} }}"""
    with nginx(body, port, SUBJECT_CORE) as process:
        yield process


@contextlib.contextmanager
def sluice(backend: int, port: int) -> Iterator[Process]:
    endpoint = wire.Endpoint(url=f"http://127.0.0.1:{backend}", revision=REVISION)
    service = wire.Service(name="bench", revision=REVISION, public=True, endpoints=[endpoint])
    with measure.folder() as folder:
        table = folder / "services.yaml"
        table.write_bytes(msgspec.json.encode(wire.ServiceTable(services=[service])))
        command = [
            sys.executable, "-m", "sluice_gateway", "--discovery", f"static:{table}",
            "--port", str(port), "--admin-port", str(free_port()),
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE_")}
        with Process(command, SUBJECT_CORE, environment) as process:
            process.wait_for(listening(port))
            yield process


class Reader(asyncio.Protocol):
    """Asks for one stream after the other and counts the events."""

    events = 0
    broken = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.received = 0
        transport.write(REQUEST)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        found = data.count(b"data: ")
        self.received += found
        Reader.events += found
        if data.endswith(b"0\r\n\r\n"):
            Reader.broken += self.received != EVENTS + 1
            self.received = 0
            self.transport.write(REQUEST)  # type: ignore[attr-defined]


async def load(process: Process, port: int, streams: int, seconds: float) -> tuple[float, float]:
    """CPU microseconds per event, and events a second."""
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(Reader, "127.0.0.1", port))[0] for _ in range(streams)]
    await asyncio.sleep(1)
    events, cpu, began = Reader.events, process.cpu_seconds(), time.monotonic()
    await asyncio.sleep(seconds)
    events, cpu = Reader.events - events, process.cpu_seconds() - cpu
    spent = time.monotonic() - began
    for transport in made:
        transport.abort()
    return cpu / max(1, events) * 1e6, events / spent


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--streams", type=int, default=100)
    options = parser.parse_args(arguments)
    peers = [Peer("nginx, unbuffered", nginx_proxy), Peer("sluice", sluice)]
    os.sched_setaffinity(0, {LOAD_CORE})
    server = Path(__file__).parent / "peers" / "event_server.py"
    backend = free_port()
    command = [sys.executable, str(server), str(backend), str(EVENTS), str(PACE), READY.decode()]
    with Process(command, LOAD_CORE) as events:
        events.wait_for(listening(backend))
        for _ in range(options.rounds):
            for peer in peers:
                port = free_port()
                with peer.start(backend, port) as process:
                    Reader.broken = 0
                    cost, rate = uvloop.run(load(process, port, options.streams, options.seconds))
                    peer.costs.append(cost)
                    peer.rates.append(rate)
                    peer.broken += Reader.broken
                    peer.memory = max(peer.memory, process.memory_mib())
    base = measure.median(peers[0].costs)
    measure.table(
        f"Streams: one core, {options.streams} at once, an event each {PACE * 1000:.0f} ms",
        ["path", "µs CPU/event", "range", "x nginx", "events/s", "MiB", "broken"],
        [
            [
                peer.name,
                f"{measure.median(peer.costs):.1f}",
                f"{min(peer.costs):.1f}-{max(peer.costs):.1f}",
                f"{measure.median(peer.costs) / base:.2f}",
                f"{measure.median(peer.rates):,.0f}",
                f"{peer.memory:.0f}",
                peer.broken,
            ]
            for peer in peers
        ],
    )
    measure.save(
        "streams",
        {
            "peers": [
                {
                    "name": peer.name,
                    "cpu_us": peer.costs,
                    "rates": peer.rates,
                    "memory_mib": peer.memory,
                    "broken": peer.broken,
                }
                for peer in peers
            ],
            "off": ["authentication (API keys do not exist yet)", "TLS"],
        },
    )


if __name__ == "__main__":
    main()
