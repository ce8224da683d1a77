"""The gateway beside nginx, HAProxy, the routers of vLLM and SGLang, and LiteLLM: proxied requests.

One core for the subject; the backends (nginx), Redis and the load share the other. JSON of about
400 bytes, keep-alive, 32 connections. Beside CPU time: latency at 1 000 requests a second, memory
with 1 000 workers and 200 services, and how the cost grows with workers and services. A flame graph
of ours under the same load is written beside the figures. Answers from the cache: ``cache``;
streams: ``streams``.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator

import measure
from measure import Unavailable
from peers import flame, rounds
from peers.proxies import (
    LITELLM,
    SGLANG_ROUTER,
    SLUICE_OFF,
    VLLM_ROUTER,
    Subject,
    backends,
    direct,
    haproxy,
    litellm,
    local_addresses,
    nginx_proxy,
    no_store,
    redis,
    service,
    sglang_router,
    sluice,
    unique,
    vllm_router,
)
from peers.rounds import Peer

Ours = Callable[..., contextlib.AbstractContextManager[Subject]]
"""Starts our gateway; see ``proxies.sluice``."""

RATE = 1_000
GROWTH_ROUNDS = 2
MANY_WORKERS, MANY_SERVICES, MEMORY_SERVICES = 1_000, 5_000, 200


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--only", default="", help="measure peers whose name contains this")
    parser.add_argument("--no-growth", action="store_true", help="leave out many workers, services")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="run ours with it; an environment with Sluice in it",
    )
    options = parser.parse_args(arguments)
    interpreter = measure.interpreter(options.python)
    ours = functools.partial(sluice, python=options.python)
    workers = local_addresses(2)
    with backends(workers), redis() as redis_socket:
        everybody = _peers(ours, workers, f"unix://{redis_socket}")
        chosen = [peer for peer in everybody if options.only in peer.name]
        rounds.run(chosen, options.rounds, options.seconds)
        graph = _flame(ours, workers, f"unix://{redis_socket}")
    measure.table(
        f"Gateway: proxied, one core, 32 connections, closed loop; ours with {interpreter}",
        rounds.HEADER,
        rounds.rows([peer for peer in chosen if peer.name != "direct"], "nginx"),
    )
    _latency(chosen)
    growth = [] if options.no_growth else _growth(ours, options.rounds, options.seconds)
    measure.save(
        "gateway",
        {
            "peers": [peer.told() for peer in chosen],
            "growth": [peer.told() for peer in growth],
            "flame_graph": graph,
            "off": SLUICE_OFF,
            "ours_with": interpreter,
        },
    )


def _peers(ours: Ours, workers: list[str], redis_url: str) -> list[Peer]:
    def full() -> "contextlib.AbstractContextManager[Subject]":
        return ours(workers, "--redis-url", redis_url)

    return [
        Peer("direct", lambda: direct(workers), no_store, rate=RATE),
        Peer("nginx", lambda: nginx_proxy(workers), no_store, rate=RATE),
        Peer("HAProxy", lambda: haproxy(workers), no_store, rate=RATE),
        Peer("Sluice, nothing looked up or stored", full, no_store, rate=RATE),
        Peer("Sluice, looked up, joined, stored in memory and Redis", full, unique),
        Peer(f"{VLLM_ROUTER} (Rust)", lambda: vllm_router(workers), no_store, rate=RATE),
        Peer(f"{SGLANG_ROUTER} (Rust)", lambda: sglang_router(workers), no_store, rate=RATE),
        Peer(LITELLM, lambda: litellm(workers), no_store, rounds=1, connections=4, least_seconds=5),
    ]


def _latency(peers: list[Peer]) -> None:
    """What each adds to the way to the worker and back."""
    base = next((peer for peer in peers if peer.name == "direct"), None)
    if base is None or not base.paced_p50:
        return
    floor50, floor99 = measure.median(base.paced_p50), measure.median(base.paced_p99)
    measure.table(
        f"Latency at {RATE:,} requests a second, open loop",
        ["path", "p50 ms", "p99 ms", "added p50", "added p99"],
        [
            [
                peer.name,
                f"{measure.median(peer.paced_p50):.3f}",
                f"{measure.median(peer.paced_p99):.2f}",
                f"{measure.median(peer.paced_p50) - floor50:.3f}",
                f"{measure.median(peer.paced_p99) - floor99:.2f}",
            ]
            for peer in peers
            if peer.paced_p50
        ],
    )


# Growth -------------------------------------------------------------------------------------------


def _growth(ours: Ours, count: int, seconds: float) -> list[Peer]:
    """Cost of a request as workers and services become many, and memory with many of both."""
    many = local_addresses(MANY_WORKERS)
    few = many[:2]
    each = len(many) // MEMORY_SERVICES
    spread = [
        service(f"s{n}" if n else "bench", many[n * each : (n + 1) * each])
        for n in range(MEMORY_SERVICES)
    ]
    asleep = [service(f"s{n}", []) for n in range(1, MANY_SERVICES)]

    @contextlib.contextmanager
    def start(workers: list[str], services: list[object] | None = None) -> Iterator[Subject]:
        with ours(workers, services=services, seconds=180) as subject:
            yield subject

    one = [service("bench", few)]
    peers = [
        Peer("2 workers, 1 service", lambda: start(few), no_store),
        Peer(f"{MANY_WORKERS:,} workers, 1 service", lambda: start(many), no_store),
        Peer(f"2 workers, {MANY_SERVICES:,} services", lambda: start(few, one + asleep), no_store),
        Peer(
            f"{MANY_WORKERS:,} workers, {MEMORY_SERVICES} services",
            lambda: start(many, list(spread)),
            no_store,
            rounds=1,
        ),
    ]
    for peer in peers:
        peer.warm_seconds = 3  # Every worker must have been connected to.
        peer.idle_seconds = 2
    with backends(many):
        rounds.run(peers, min(count, GROWTH_ROUNDS), seconds)
    base = measure.median(peers[0].costs)
    measure.table(
        "Sluice as workers and services become many, nothing looked up or stored",
        ["", "µs CPU/req above idle", "range", "× the first", "idle, % of the core", "MiB"],
        [
            [
                peer.name,
                f"{measure.median(peer.costs):.1f}",
                f"{min(peer.costs):.1f}–{max(peer.costs):.1f}",
                f"{measure.median(peer.costs) / base:.2f}",
                f"{measure.median(peer.idle) * 100:.1f}",
                f"{peer.memory:.0f}",
            ]
            for peer in peers
            if peer.costs
        ],
    )
    return peers


# Where the time goes ------------------------------------------------------------------------------


def _flame(ours: Ours, workers: list[str], redis_url: str) -> str:
    """A flame graph of ours under load; empty when it cannot be had."""
    try:
        with ours(workers, "--redis-url", redis_url) as subject:
            path = flame.record("gateway", subject, unique(subject, 999))
    except Unavailable as why:
        print(f"▸ no flame graph: {why}", file=sys.stderr)
        return ""
    measure.table(
        "Where ours spends its time: share of the samples, without what is called",
        ["function", "%"],
        [[n, f"{s * 100:.1f}"] for n, s in flame.heaviest(path.with_suffix(".folded"))],
    )
    print(f"\n  flame graph: {path}")
    return path.name


if __name__ == "__main__":
    main()
